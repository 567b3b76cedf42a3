"""All live parts of a training run, made once from its config."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlm.core.distributed import broadcast_object, rank, world_size
from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.data.caption_choice import CaptionSettings
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.loader import TrainLoader
from mmlm.data.order import examples_per_epoch
from mmlm.data.sources import Source, texts_of
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.evaluators import Evaluator
from mmlm.evaluation.requires import (
    SplitFindings,
    SplitTexts,
    check_languages,
    check_start,
    find_lacking,
    required_by,
)
from mmlm.experiment.build import (
    build_evaluators,
    build_freeze,
    build_model,
    build_objective,
    build_optim,
    build_parallel,
    build_schedule,
    build_source,
    build_splits,
    build_transform,
    sizes_with_teacher,
    unfitted_tokenizer,
)
from mmlm.experiment.config import Config
from mmlm.experiment.device import choose_device, seed_everything
from mmlm.experiment.saved_run import (
    differing_sizes,
    initialise_from,
    load_teacher,
    restore_tokenizer,
    start_objective,
    start_weights,
    tokenizer_folder,
)
from mmlm.model.model import ImageTextModel
from mmlm.objectives.objective import Comparison, FusionObjective
from mmlm.objectives.parallel_captioning import ParallelCaptioning
from mmlm.objectives.shared.token_prediction import TokenPrediction
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.optim.freeze import check_plan
from mmlm.optim.optimizers import Optimizer, OptimizerPart, carry_state
from mmlm.optim.schedules import Schedule
from mmlm.record.environment import precision_of_run
from mmlm.record.folder import TOKENIZER
from mmlm.training.parallel import Parallel, prepare
from mmlm.training.teacher import Teacher
from mmlm.training.train_state import TrainState
from mmlm.training.train_step import TrainStep


@dataclass(frozen=True)
class Experiment:
    """Everything a training run is made of."""

    state: TrainState
    schedule: Schedule
    model: ImageTextModel
    tokenizer: Tokenizer
    validation: Mapping[str, EvaluationBatches]
    evaluators: Mapping[str, Evaluator]
    findings: SplitFindings
    """What the validation splits lack for the evaluators, and what the user is told of that."""
    started: Sequence[str]
    """What the user is told of a start from other weights: which losses begin anew."""
    train_source: Source
    device: torch.device
    precision: Precision
    """The precision to compute in, with ``auto`` resolved for this device."""
    parallel: Parallel

    def whole(self) -> AbstractContextManager[None]:
        """A context in which every rank holds every weight whole. All ranks enter and leave it together."""
        return self.parallel.whole(self.state.train_step)


def build_experiment(config: Config, folder: Path, device: torch.device | None = None) -> Experiment:
    """All parts of a training run, its tokenizer fitted (or restored from ``folder``). Writes nothing.

    ``device`` None is the one that the config names. Raises UserError for parts that do not fit together, a batch size
    that the data or the ranks cannot share, and a language that the tokenizer lacks or that training never sees.
    """
    seed_everything(config.seed)
    device = device or choose_device(config.device)
    source = build_source(config, config.data.train, "data.train")
    size = examples_per_epoch(source)
    if config.train.batch_size > size:
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is larger than the data set, which has {size} "
            f"examples; use at most {size}"
        )
    if config.train.batch_size % world_size():
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is no multiple of the {world_size()} ranks that share it; "
            f"use {config.train.batch_size // world_size() * world_size() or world_size()}"
        )
    config.data.captions.check(source.captions())
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
        shuffle_window=config.data.shuffle_window,
        choice=config.data.captions,
    )
    validation = build_splits(config, tokenizer, config.data.validation, "data.validation")
    evaluators = build_evaluators(config)
    # A decoder captions the report's samples, whatever is evaluated.
    required = [required_by(evaluator) for evaluator in evaluators.values()]
    if config.decoder is not None or any(requires is not None and requires.own_texts for requires in required):
        check_start(config.data.language, source.captions(), tokenizer)
    findings = find_splits(validation, "data.validation", tokenizer, evaluators)

    # The model, in this order: weights of another run are copied by the names that they have without adapters, then
    # adapters are added, and only then can the freeze plan be checked against every name that there is.
    model = build_model(config, tokenizer.vocab_size)
    if config.init_from.run is not None or config.init_from.weights is not None:
        source_of_weights, weights = start_weights(config.init_from, config.plugins)
        try:
            initialise_from(model, config.init_from, source_of_weights, weights)
        except UserError as error:
            raise UserError(f"{error}{differing_sizes(config)}") from None
    plan = build_freeze(config)
    plan.add_adapters(model)
    check_plan(plan, model, config.train.steps)
    objective = build_objective(config)
    _check_uses(config.data.captions, objective)
    teacher = load_teacher(config, objective, tokenizer, source, device)
    objective.connect(sizes_with_teacher(config, model.sizes, None if teacher is None else teacher.sizes))
    started: list[str] = []
    if config.init_from.run is not None or config.init_from.weights is not None:
        started = start_objective(config, objective)
    train_step = TrainStep(model, objective, plan, None if teacher is None else Teacher(teacher)).to(device)

    # A teacher that is the moving average is a deep copy of the model, and ``prepare`` allows no copy after it. Any
    # other average is made after ``prepare``, so that under FSDP2 it holds this rank's shards only.
    optim, ema = build_optim(config), None
    if config.teacher.ema:
        assert config.train.ema_decay is not None, "check_config refuses teacher.ema without train.ema_decay"
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
        schedule=build_schedule(config),
        model=model,
        tokenizer=tokenizer,
        validation=validation,
        evaluators=evaluators,
        findings=findings,
        started=started,
        train_source=source,
        device=device,
        precision=broadcast_object(precision_of_run(settings.precision, folder, device), 0),
        parallel=parallel,
    )


def find_splits(
    splits: Mapping[str, EvaluationBatches], slot: str, tokenizer: Tokenizer, evaluators: Mapping[str, Evaluator]
) -> SplitFindings:
    """Asks the evaluators about the texts of splits, whose nodes stand below ``slot``.

    Raises UserError for a caption in a language that the tokenizer does not know.
    """
    texts = {name: SplitTexts(f"{slot}.{name}", tuple(batches.texts())) for name, batches in splits.items()}
    for one in texts.values():
        check_languages(one, tokenizer)
    return find_lacking(texts, evaluators)


def optimizer_by_step(train_step: TrainStep, optim: OptimizerPart) -> Callable[[int, Optimizer], Optimizer]:
    """The function that ``TrainState.optimizer_for`` calls with (step, optimizer).

    It freezes and unfreezes what the plan says for that step, and returns a new optimizer only if that changed what
    trains; parameters that go on training keep their optimizer state.
    """

    def optimizer_for(step: int, optimizer: Optimizer) -> Optimizer:
        if not train_step.freeze_for(step):
            return optimizer
        return carry_state(optimizer, optim(train_step, train_step.learning_rate_scales()))

    return optimizer_for


def build_tokenizer(config: Config, folder: Path, source: Source) -> Tokenizer:
    """The run's tokenizer, ready to use.

    It is restored from the run folder ``folder`` if the run has begun, else from where ``init_from`` takes the decoder
    or text encoder (their embeddings go with its ids), else fitted to the captions of ``source``.
    """
    tokenizer = unfitted_tokenizer(config)
    saved = folder / TOKENIZER
    if saved.is_dir():
        restore_tokenizer(tokenizer, saved)
        return tokenizer
    brought = tokenizer_folder(config.init_from)
    if brought is not None:
        restore_tokenizer(tokenizer, brought)
    else:
        try:
            tokenizer.fit(source.captions())
        except UserError:
            check_languages(SplitTexts("data.train", tuple(texts_of(source))), tokenizer)  # names the example
            raise
    return tokenizer


def _check_uses(captions: CaptionSettings, objective: WeightedSum) -> None:
    """UserError for kinds of captions that are for losses which the objective does not have."""
    uses = {"contrastive": (Comparison, FusionObjective), "captioning": (TokenPrediction, ParallelCaptioning)}
    for key, kinds in uses.items():
        if getattr(captions, key) is not None and not any(isinstance(p, kinds) for p in objective.objectives.values()):
            raise UserError(f"data.captions.{key}: no objective of this run reads such captions; leave it out")
    comparisons = [part for part in objective.objectives.values() if isinstance(part, Comparison)]
    if captions.negatives is not None and not any(part.reads_negatives for part in comparisons):
        raise UserError("data.captions.negatives: no objective of this run reads them; InfoNCE (contrastive) does")


def _check_language(language: str | None, tokenizer: Tokenizer) -> None:
    """Refuses a language that the tokenizer lacks before training starts, not at the first evaluation."""
    try:
        tokenizer.start_id(language)
    except UserError as error:
        raise UserError(f"data.language: {error}") from None
