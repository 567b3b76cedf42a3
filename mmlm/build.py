"""Config to live parts, once. Nothing below this floor sees a config; widths and sizes are supplied here."""

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mmlm.config import Config, InitSettings, load_config
from mmlm.data.loader import EvaluationBatches, TrainLoader
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer, same_tokens
from mmlm.data.transforms import Transform
from mmlm.distributed import broadcast_object, rank, world_size
from mmlm.environment import precision_of_run
from mmlm.errors import UserError
from mmlm.evaluation.evaluators import Evaluator
from mmlm.flow import EMBED, ModelSizes, TextView
from mmlm.freeze import FreezePlan, check_plan
from mmlm.lora import merge_adapters
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import Bridge, Decoder, Encoder, TextEncoder
from mmlm.objectives.objective import WeightedSum
from mmlm.objectives.teacher import Teacher
from mmlm.objectives.train_step import TrainStep
from mmlm.optim import ExponentialMovingAverage, Optimizer, OptimizerPart, Schedule, carry_state
from mmlm.parallel import Parallel, prepare
from mmlm.parts import build_part
from mmlm.precision import Precision
from mmlm.runs import (
    CONFIG,
    TOKENIZER,
    exported_weights,
    find_run,
    initialise_from,
    model_weights,
    tokenizer_folder,
)
from mmlm.train_state import TrainState
from mmlm.weights import copy_weights, read_weights


@dataclass(frozen=True)
class Experiment:
    """Everything a training run is made of."""

    state: TrainState
    schedule: Schedule
    model: ImageTextModel
    tokenizer: Tokenizer
    validation: Mapping[str, EvaluationBatches]
    evaluators: Mapping[str, Evaluator]
    train_source: Source
    device: torch.device
    precision: Precision
    """What is computed in, ``auto`` settled."""
    parallel: Parallel

    def whole(self) -> AbstractContextManager[None]:
        """A context in which every weight is all there on every rank; all ranks enter and leave it together."""
        return self.parallel.whole(self.state.train_step)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch. Data order and augmentation are keyed by the seed on their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device, the ``local_rank``-th of this machine if there are several.

    Raises UserError for a device that is not there. Under SLURM a rank may see its own accelerator only.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: '{name}' is not one of auto, cpu, cuda")
    if name == "cuda" and not available:
        raise UserError("device: cuda was asked for and torch finds no CUDA device; use device=cpu or device=auto")
    return torch.device("cpu") if name == "cpu" else torch.device("cuda", local_rank % torch.cuda.device_count())


def build_experiment(config: Config, folder: Path, device: torch.device | None = None) -> Experiment:
    """All parts of a training run, its tokenizer fitted (or restored from ``folder``). Writes nothing.

    ``device`` None is the one that the config names.
    """
    seed_everything(config.seed)
    device = device or choose_device(config.device)
    source = build_source(config, config.data.train, "data.train")
    if config.train.batch_size > len(source):
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is larger than the data set, which has {len(source)} "
            f"examples; use at most {len(source)}"
        )
    if config.train.batch_size % world_size():
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is no multiple of the {world_size()} ranks that share it; "
            f"use {config.train.batch_size // world_size() * world_size() or world_size()}"
        )
    tokenizer = build_tokenizer(config, folder, source)
    _check_language(config.data.language, tokenizer)
    transform = build_transform(config)
    loader = TrainLoader(
        source,
        tokenizer,
        transform,
        config.train.batch_size,
        config.seed,
        config.data.captions_per_image,
        config.data.max_tokens,
        config.data.workers,
        rank(),
        world_size(),
    )
    validation = build_splits(config, tokenizer, config.data.validation, "data.validation")
    model = build_model(config, tokenizer.vocab_size)
    if config.init_from.run is not None or config.init_from.weights is not None:
        initialise_from(model, config.init_from, *start_weights(config.init_from))
    plan = build_freeze(config)
    plan.add_adapters(model)
    check_plan(plan, model, config.train.steps)
    objective = build_objective(config)
    teacher = load_teacher(config, objective, tokenizer, source, device)
    objective.connect(sizes_with_teacher(config, model.sizes, None if teacher is None else teacher.sizes))
    train_step = TrainStep(model, objective, plan, None if teacher is None else Teacher(teacher)).to(device)
    optim, ema = build_optim(config), None
    if config.teacher.ema:  # a copy of the model as it was built
        ema = ExponentialMovingAverage(train_step, config.train.ema_decay)
        train_step.teacher = Teacher.averaging(model, objective, ema)
    settings, parallel = config.train, build_parallel(config)
    trained = prepare(train_step, parallel, device, settings.activation_checkpointing, settings.compile)
    if ema is None and settings.ema_decay is not None:
        ema = ExponentialMovingAverage(train_step, settings.ema_decay)
    return Experiment(
        state=TrainState(
            trained,
            optim(train_step, train_step.learning_rate_scales()),
            loader,
            ema,
            config.seed,
            optimizer_for=optimizer_by_step(train_step, optim),
        ),
        schedule=cast(Schedule, build_part(config.schedule, "schedule", {}, config.plugins)),
        model=model,
        tokenizer=tokenizer,
        validation=validation,
        evaluators=build_evaluators(config),
        train_source=source,
        device=device,
        precision=broadcast_object(precision_of_run(settings.precision, folder, device), 0),
        parallel=parallel,
    )


def build_objective(config: Config) -> WeightedSum:
    """What is minimised; its parts of the model's widths are made by ``connect``. Raises UserError."""
    return cast(WeightedSum, build_part(config.objective, "objective", {}, config.plugins))


def build_optim(config: Config) -> OptimizerPart:
    """What makes the optimizer."""
    return cast(OptimizerPart, build_part(config.optim, "optim", {}, config.plugins))


def build_parallel(config: Config) -> Parallel:
    """How several ranks share the work."""
    return cast(Parallel, build_part(config.parallel, "parallel", {}, config.plugins))


def build_freeze(config: Config) -> FreezePlan:
    """What trains."""
    return cast(FreezePlan, build_part(config.freeze, "freeze", {}, config.plugins))


def optimizer_by_step(train_step: TrainStep, optim: OptimizerPart) -> Callable[[int, Optimizer], Optimizer]:
    """What ``TrainState.optimizer_for`` is: unfreezes when the plan says so; what trained before keeps its state."""

    def optimizer_for(step: int, optimizer: Optimizer) -> Optimizer:
        if not train_step.freeze_for(step):
            return optimizer
        return carry_state(optimizer, optim(train_step, train_step.learning_rate_scales()))

    return optimizer_for


def build_source(config: Config, node: object, slot: str) -> Source:
    """A data source."""
    return cast(Source, build_part(node, slot, {}, config.plugins))


def build_tokenizer(config: Config, folder: Path, source: Source) -> Tokenizer:
    """The run's tokenizer: restored from ``folder`` or from where its decoder comes from, else fitted."""
    tokenizer = cast(Tokenizer, build_part(config.tokenizer, "tokenizer", {}, config.plugins))
    saved = folder / TOKENIZER
    if saved.is_dir():
        tokenizer.restore(saved)
        return tokenizer
    brought = tokenizer_folder(config.init_from)
    if brought is not None:
        tokenizer.restore(brought)
    else:
        tokenizer.fit(source.captions())
    return tokenizer


def _check_language(language: str | None, tokenizer: Tokenizer) -> None:
    """Refuses a language that the tokenizer lacks now, and not when the first captions are generated."""
    try:
        tokenizer.start_id(language)
    except UserError as error:
        raise UserError(f"data.language: {error}") from None


def build_transform(config: Config) -> Transform:
    """Augmentation for training; evaluation takes the same object's plain path."""
    runtime = {"image_size": config.data.image_size}
    return cast(Transform, build_part(config.transform, "transform", runtime, config.plugins))


def build_splits(
    config: Config, tokenizer: Tokenizer, nodes: Mapping[str, object], slot: str
) -> dict[str, EvaluationBatches]:
    """Evaluation batches of each split, by name."""
    transform = build_transform(config)
    return {
        name: EvaluationBatches(
            build_source(config, node, f"{slot}.{name}"),
            tokenizer,
            transform,
            config.data.evaluation_batch_size,
            config.data.max_tokens,
        )
        for name, node in nodes.items()
    }


def build_evaluators(config: Config) -> dict[str, Evaluator]:
    """The evaluators, by name."""
    runtime = {"language": config.data.language}
    return {
        name: cast(Evaluator, build_part(node, f"evaluators.{name}", runtime, config.plugins))
        for name, node in config.evaluators.items()
    }


def sizes_with_teacher(config: Config, sizes: ModelSizes, teacher: ModelSizes | None) -> ModelSizes:
    """``sizes`` with those of the teacher: of a run, or of the average of the model itself."""
    return replace(sizes, teacher=sizes if config.teacher.ema else teacher)


def load_teacher(
    config: Config, objective: WeightedSum, tokenizer: Tokenizer, source: Source, device: torch.device
) -> ImageTextModel | None:
    """The model of ``teacher.run``, if that is set. Raises UserError if it reads other tokens than this run's."""
    if config.teacher.run is None:
        return None
    run = load_run(config.teacher.run, device)
    views = frozenset().union(*(part.teacher_views for part in objective.objectives.values()))
    reads = any(view == EMBED or isinstance(view, TextView) for view in views)
    if reads and not same_tokens(tokenizer, run.tokenizer, source.captions()):
        raise UserError(
            f"teacher.run: the tokenizer of {run.folder} makes other ids than this run's; use the same tokenizer, "
            "fitted on the same captions, for both"
        )
    return run.model


def build_model(config: Config, vocab_size: int, load_weights: bool = True) -> ImageTextModel:
    """Encoder, bridge, text encoder and decoder, each told the widths of those before it.

    ``load_weights`` false leaves out pretrained weights: the caller loads all of them. Raises UserError for parts that
    do not fit together.
    """

    def build(slot: str, **runtime: object) -> object:
        node = getattr(config, slot)
        return None if node is None else build_part(node, slot, runtime, config.plugins)

    encoder = cast(Encoder, build("encoder", image_size=config.data.image_size, load_weights=load_weights))
    bridge = cast(
        Bridge | None,
        build(
            "bridge",
            patch_width=encoder.width,
            grid=encoder.grid,
            num_prefix_tokens=encoder.num_prefix_tokens,
            drops_patches=encoder.drops_patches,
            pool=encoder.pooled_width is None,
        ),
    )
    text = {"vocab_size": vocab_size, "max_tokens": config.data.max_tokens, "load_weights": load_weights}
    text_encoder = cast(TextEncoder | None, build("text_encoder", **text))
    decoder = None
    if bridge is not None:
        memory = {"memory_width": bridge.memory_width, "num_memory": bridge.num_memory}
        decoder = cast(Decoder | None, build("decoder", **text, **memory, embeds_text=text_encoder is None))
    elif config.decoder is not None:
        raise UserError("bridge: the decoder needs one to see the image; choose one, such as bridge=attentional_pooler")
    return ImageTextModel(encoder, bridge, decoder, config.model.embedding_width, text_encoder)


@dataclass(frozen=True)
class TrainedRun:
    """What a finished (or stopped) run left behind, ready to use."""

    folder: Path
    config: Config
    step: int
    """Optimizer steps that the weights have been trained for."""
    model: ImageTextModel
    """In eval mode, with the weights that the run exports."""
    tokenizer: Tokenizer


def load_run(path: str, device: torch.device) -> TrainedRun:
    """The run at (or the only one below) ``path`` with the weights it exports, on ``device``. Raises UserError."""
    folder = find_run(path)
    config = load_config(folder / CONFIG)
    tokenizer = cast(Tokenizer, build_part(config.tokenizer, "tokenizer", {}, config.plugins))
    tokenizer.restore(folder / TOKENIZER)
    model = build_model(config, tokenizer.vocab_size, load_weights=False)
    build_freeze(config).add_adapters(model)
    step, weights = exported_weights(folder, config)
    copy_weights(model.state_dict(), weights, f"run: {folder}")
    return TrainedRun(folder, config, step, model.to(device).eval(), tokenizer)


def start_weights(start: InitSettings) -> tuple[Path, dict[str, Tensor]]:
    """Where ``init_from`` takes weights from, and the model's among them, adapters merged. Raises UserError."""
    if start.weights is not None:
        return Path(start.weights), model_weights(read_weights(Path(start.weights)))
    folder = find_run(cast(str, start.run))
    config = load_config(folder / CONFIG)
    if build_freeze(config).lora is None:
        return folder, exported_weights(folder, config)[1]
    model = load_run(str(folder), torch.device("cpu")).model
    merge_adapters(model)
    return folder, model.state_dict()
