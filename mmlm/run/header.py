"""What the console says of a run before it trains."""

from pathlib import Path

import torch.distributed as dist

from mmlm.core.computing import computing
from mmlm.core.distributed import world_size
from mmlm.core.peak_flops import peak_flops
from mmlm.data.order import examples_per_epoch
from mmlm.experiment.build import build_freeze
from mmlm.experiment.config import Config
from mmlm.experiment.experiment import Experiment
from mmlm.launch.rank_info import Starter
from mmlm.model.costs import ModelCosts, TrainingCosts, model_costs
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.record.environment import device_name
from mmlm.training.train_step import inner
from mmlm.training.work import Spent


def run_costs(config: Config, experiment: Experiment) -> TrainingCosts:
    """Parameters and FLOPs of what this run trains, for captions of ``max_tokens`` and of half as many."""
    data, objective = config.data, inner(experiment.state.train_step).objective

    def costs(num_tokens: int) -> ModelCosts:
        return model_costs(experiment.model, data.image_size, num_tokens, objective.views, objective.pairs_per_image)

    half = max(2, data.max_tokens // 2)
    with experiment.whole(), computing(experiment.device, experiment.precision):
        return TrainingCosts(costs(half), half, costs(data.max_tokens), data.max_tokens)


def flops_values(experiment: Experiment, costs: TrainingCosts, spent: Spent) -> dict[str, float]:
    """``tflops_per_second`` of what all ranks did and, where the device's peak is known, ``mfu``."""
    work = spent.work
    flops = costs.flops(experiment.model, work.images, work.captions, work.tokens) / spent.seconds
    peak = peak_flops(experiment.device, experiment.precision)
    utilisation = {} if peak is None else {"mfu": flops / (peak * spent.ranks)}
    return {"tflops_per_second": flops / 1e12, **utilisation}


def header_rows(
    config: Config, experiment: Experiment, folder: Path, costs: ModelCosts, starter: Starter
) -> list[tuple[str, str]]:
    device, tokenizer = device_name(experiment.device), experiment.tokenizer
    epochs = config.train.steps * config.train.batch_size / examples_per_epoch(experiment.train_source)
    splits = ", ".join(f"{name} {batches.num_examples:,}" for name, batches in experiment.validation.items())
    return [
        ("experiment", f"{config.experiment} (seed {config.seed}) on {device}, {experiment.precision.name}"),
        ("data", f"{examples_per_epoch(experiment.train_source):,} images to train on, {splits} to validate on"),
        ("tokenizer", f"{tokenizer.vocab_size:,} tokens"),
        *_model_rows(experiment.model, costs, config.data.max_tokens),
        ("trainable", _trainable(config, experiment, sum(costs.parameters.values()))),
        ("training", f"{config.train.steps:,} steps of {config.train.batch_size} examples, {epochs:.1f} epochs"),
        ("ranks", _shares(config, starter)),
        ("results", str(folder)),
    ]


def _shares(config: Config, starter: Starter) -> str:
    """``2 by torchrun (gloo), each 64 examples a step, as 2 micro-batches of 32``."""
    each = config.train.batch_size // world_size()
    micro = min(each, config.train.micro_batch_size or each)
    parts = "in one piece" if micro == each else f"as {-(-each // micro)} micro-batches of {micro}"
    if world_size() == 1:
        return f"1, {parts}"
    return f"{world_size()} by {starter} ({dist.get_backend()}), each {each} examples a step, {parts}"


def _trainable(config: Config, experiment: Experiment, total: int) -> str:
    """``2.10M of 2.20M parameters; encoder from step 500 on``."""
    trainable = sum(p.numel() for p in experiment.model.parameters() if p.requires_grad)
    later = [f"; {name} from step {step:,} on" for name, step in build_freeze(config).unfreeze.items()]
    return f"{trainable / 1e6:.2f}M of {total / 1e6:.2f}M parameters{''.join(later)}"


def _model_rows(model: ImageTextModel, costs: ModelCosts, max_tokens: int) -> list[tuple[str, str]]:
    """The model, then each of its parts: class, parameters, FLOPs."""

    def size(parameters: int, flops: int) -> str:
        return f"{parameters / 1e6:.2f}M parameters, {flops / 1e6:,.1f} MFLOPs"

    total = size(sum(costs.parameters.values()), sum(costs.flops.values()))
    parts = {name: part for name, part in model.named_children() if name in MODEL_SLOTS}
    rows = [("model", f"{total} forward for one image and {max_tokens} tokens (a multiply-add is 2)")]
    for name, part in parts.items():
        rows.append((f"  {name}", f"{type(part).__name__} {size(costs.parameters[name], costs.flops[name])}"))
    return rows
