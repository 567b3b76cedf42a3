"""``python -m mmlm.train experiment=NAME``: trains, evaluates, and writes the report of one run."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from mmlm.build import Experiment, build_experiment, build_freeze, check_cell
from mmlm.checkpoint import latest_checkpoint, load_checkpoint, mark_best, prune, save_checkpoint
from mmlm.cli import INTERRUPTED, run_hydra
from mmlm.config import (
    CONFIG_DIR,
    CONFIG_NAME,
    Config,
    check_config,
    config_values,
    differences,
    load_config,
    run_folder,
    save_config,
)
from mmlm.environment import describe_environment, device_name, save_environment
from mmlm.errors import UserError
from mmlm.evaluation.evaluate import Evaluation
from mmlm.loop import Interrupted, TrainState, describe_corrupt, fit
from mmlm.metrics import Console, MetricLog
from mmlm.model.costs import SLOTS, ModelCosts, model_costs
from mmlm.model.model import ImageTextModel
from mmlm.objectives.train_step import backward
from mmlm.precision import computing
from mmlm.preflight import Preflight, check_first_batch
from mmlm.report.page import write_report
from mmlm.runs import CHECKPOINTS, CONFIG, TOKENIZER, exported_weights

SHOWN = ("image_to_text/R@1", "image_to_text/R@5", "captioning/exact", "captioning/CIDEr-D", "image_use_gap/mean")
"""The values of each split that the console shows at the end."""


def main(cfg: DictConfig) -> int:
    """Trains one composed experiment; returns the exit status."""
    config = check_config(cfg)
    console = Console()
    folder = run_folder(config)
    _refuse_another_config(config, folder)
    check_cell(config)
    experiment = build_experiment(config, folder)
    _look_at_first_batch(config, experiment, console)
    if config.preflight:
        return 0
    costs = _costs(config, experiment)
    _record(config, experiment, folder, costs)
    console.header(_header(config, experiment, folder, costs))
    _resume(experiment.state, folder, console)
    evaluation = _evaluation(config, experiment)
    if experiment.state.step < config.train.steps:
        try:
            _train(config, experiment, evaluation, folder, console)
        except Interrupted as stop:
            console.line(f"stopped and saved at step {stop.step}; resume with: {_command()}")
            return INTERRUPTED
    elif (folder / "report.html").exists():
        console.line(f"finished already at step {experiment.state.step}; the report is {folder / 'report.html'}")
        console.line(f"to train again add name=second; to train on from these weights add init_from.run={folder}")
        return 0
    _finish(config, experiment, evaluation, folder, console)
    return 0


def _refuse_another_config(config: Config, folder: Path) -> None:
    """Raises UserError if the run folder holds a run of another config."""
    file = folder / CONFIG
    changed = differences(load_config(file), config) if file.exists() else []
    if changed:
        shown = "; ".join(changed[:5])
        raise UserError(f"{folder} holds a run of another config ({shown}); give this one another name=")


def _look_at_first_batch(config: Config, experiment: Experiment, console: Console) -> None:
    """Raises UserError if an objective has nothing to train on in it; shows it first if that is asked for."""
    objective = experiment.state.train_step.objective
    batch = experiment.state.loader.peek().to(experiment.device)
    if config.preflight:
        preflight = Preflight(batch, experiment.tokenizer, objective, config.data.max_tokens, config.seed)
        console.line(preflight.text())
    check_first_batch(objective, batch, config.seed)


def _costs(config: Config, experiment: Experiment) -> ModelCosts:
    """Parameters and FLOPs of what this run trains."""
    data, objective = config.data, experiment.state.train_step.objective
    with computing(experiment.device, config.train.precision):
        return model_costs(
            experiment.model, data.image_size, data.max_tokens, objective.views, objective.pairs_per_image
        )


def _record(config: Config, experiment: Experiment, folder: Path, costs: ModelCosts) -> None:
    """What the run is made of, into its folder, unless it is there: only of experiments that could be built."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs: {folder} cannot be made ({error.strerror}); give runs= another folder") from error
    if not (folder / CONFIG).exists():
        save_config(config, folder / CONFIG)
    if not (folder / TOKENIZER).is_dir():
        experiment.tokenizer.save(folder / TOKENIZER)
    if not (folder / "environment.json").exists():
        save_environment(describe_environment(experiment.device, dataclasses.asdict(costs)), folder)


def _header(config: Config, experiment: Experiment, folder: Path, costs: ModelCosts) -> list[tuple[str, str]]:
    device, tokenizer = device_name(experiment.device), experiment.tokenizer
    epochs = config.train.steps * config.train.batch_size / len(experiment.train_source)
    splits = ", ".join(f"{name} {batches.num_examples:,}" for name, batches in experiment.validation.items())
    return [
        ("experiment", f"{config.experiment} (seed {config.seed}) on {device}, {config.train.precision.name}"),
        ("data", f"{len(experiment.train_source):,} images to train on, {splits} to validate on"),
        ("tokenizer", f"{tokenizer.vocab_size:,} tokens"),
        *_model_rows(experiment.model, costs, config.data.max_tokens),
        ("trainable", _trainable(config, experiment, sum(costs.parameters.values()))),
        ("training", f"{config.train.steps:,} steps of {config.train.batch_size} examples, {epochs:.1f} epochs"),
        ("results", str(folder)),
    ]


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
    parts = {name: part for name, part in model.named_children() if name in SLOTS}
    rows = [("model", f"{total} forward for one image and {max_tokens} tokens (a multiply-add is 2)")]
    for name, part in parts.items():
        rows.append((f"  {name}", f"{type(part).__name__} {size(costs.parameters[name], costs.flops[name])}"))
    return rows


def _resume(state: TrainState, folder: Path, console: Console) -> None:
    """Continues from the newest intact checkpoint, if there is one."""
    newest, damaged = latest_checkpoint(folder / CHECKPOINTS)
    for message in damaged:
        console.line(message)
    if newest is None:
        return
    checkpoint = load_checkpoint(newest)
    state.train_step.load_state_dict(checkpoint.weights["model"])
    if state.ema is not None:
        state.ema.load(checkpoint.weights["ema"])
    state.load_state_dict(checkpoint.state)
    console.line(f"resumed at step {state.step} from {newest}")


def _evaluation(config: Config, experiment: Experiment) -> Evaluation:
    return Evaluation(
        model=experiment.model,
        tokenizer=experiment.tokenizer,
        evaluators=experiment.evaluators,
        max_tokens=config.data.max_tokens,
        device=experiment.device,
        computing=functools.partial(computing, experiment.device, config.train.precision),
    )


def _train(config: Config, experiment: Experiment, evaluation: Evaluation, folder: Path, console: Console) -> None:
    state = experiment.state

    def save(state: TrainState, is_best: bool) -> None:
        root = folder / CHECKPOINTS
        weights = {"model": state.train_step.state_dict()}
        if state.ema is not None:
            weights["ema"] = state.ema.tensors
        saved = save_checkpoint(root, state.step, weights, state.state_dict())
        if is_best:
            mark_best(root, saved, config.train.best_metric, state.best)
        prune(root, config.train.keep_last)

    def evaluate(step: int) -> Mapping[str, float]:
        return evaluation.all_scores(experiment.validation)

    name = "/".join(folder.parts[-3:])
    with MetricLog(folder, config.metrics, config_values(config), name, tell=console.line) as log:
        log.resume_from(state.step if state.step else None)
        fit(state, config.train, experiment.schedule, backward, experiment.device, log, console, evaluate, save)


def _finish(config: Config, experiment: Experiment, evaluation: Evaluation, folder: Path, console: Console) -> None:
    """Scores and samples of the weights that are exported, and the page that shows them."""
    step, weights = exported_weights(folder, config)
    experiment.model.load_state_dict(weights)
    experiment.model.eval()
    scores = evaluation.write(folder, step, experiment.validation, config.samples, config.data.language)
    for split, values in scores.items():
        if experiment.validation[split].corrupt:
            console.line(describe_corrupt(split, experiment.validation[split].corrupt))
        console.line(f"{split}: " + ", ".join(f"{key} {values[key]:.3f}" for key in SHOWN if key in values))
    console.line(f"report: {write_report(folder)}")


def _command() -> str:
    return shlex.join(["python", "-m", "mmlm.train", *sys.argv[1:]])


if __name__ == "__main__":
    run_hydra(main, CONFIG_DIR, CONFIG_NAME)
