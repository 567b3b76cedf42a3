"""Checks whether the parts of a config fit together, before anything real is built: accepts or refuses each cell."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from mmlm.core.errors import UserError
from mmlm.core.views import CAPTION, PatchView, TextView
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.data.tokenizers.open_clip import OpenClip
from mmlm.evaluation.evaluators import Evaluator
from mmlm.evaluation.requires import Requires, Requiring
from mmlm.experiment.build import (
    build_evaluators,
    build_freeze,
    build_loggers,
    build_model,
    build_objective,
    build_optim,
    build_parallel,
    build_schedule,
    build_transform,
    sizes_with_teacher,
)
from mmlm.experiment.config import Config
from mmlm.experiment.config_file import load_config
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import OPEN_CLIP, Decoder, TextEncoder
from mmlm.objectives.objective import FusionObjective, Objective
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.objectives.weights import WeightSchedule
from mmlm.optim.freeze import FreezePlan, check_plan
from mmlm.record.folder import CONFIG, find_run
from mmlm.training.parallel import check_parallel

_ASSUMED_VOCABULARY = 1000
"""The vocabulary size that ``check_compatible`` assumes: the tokenizer is fitted later, once there is data."""


def check_compatible(config: Config) -> None:
    """Puts the model together without memory or weights (on the meta device), and checks that its parts fit.

    A constructor or the model refuses the same things later. Here they are refused in one line, before the data is read
    or anything real is built. Each part makes one pass too, to see that it keeps its protocol (``contract.py``). Raises
    UserError.
    """
    # Parts that need no data are made once, for what they refuse.
    build_loggers(config)
    build_transform(config)
    build_schedule(config)
    check_parallel(build_parallel(config), build_optim(config), config.teacher.ema)
    objective = build_objective(config)
    plan = build_freeze(config)
    with torch.device("meta"):
        model = build_model(config, _ASSUMED_VOCABULARY, load_weights=False, try_parts=True)
        plan.add_adapters(model)
    check_plan(plan, model, config.train.steps)
    check_vocabulary(config.tokenizer, {"text_encoder": model.text_encoder, "decoder": model.decoder})
    _check_views(objective, model)
    _check_patch_views(objective, model, plan, config.train.steps)
    _check_teacher(config, objective)
    _check_weights(objective, config.train.steps)
    with torch.device("meta"):
        teacher = None if config.teacher.run is None else _planned_teacher(config).sizes
        objective.connect(sizes_with_teacher(config, model.sizes, teacher))
    check_evaluators(build_evaluators(config), model.decoder is not None)


def check_evaluators(evaluators: Mapping[str, Evaluator], has_decoder: bool) -> None:
    """UserError for what is no evaluator, and for an evaluator of captions if the model has no decoder."""
    for name, evaluator in evaluators.items():
        if not isinstance(evaluator, Evaluator):
            raise UserError(
                f"evaluators.{name}: {type(evaluator).__name__} is no evaluator; it has to be called with a split, and "
                "to have needs_decoder and figures (mmlm/evaluation/evaluators.py)"
            )
        if isinstance(evaluator, Requiring) and not isinstance(evaluator.requires, Requires):
            raise UserError(
                f"evaluators.{name}: its requires is a {type(evaluator.requires).__name__}; make it a Requires "
                "(mmlm/evaluation/requires.py)"
            )
        if evaluator.needs_decoder and not has_decoder:
            raise UserError(f"evaluators.{name}: there is no decoder to evaluate; use evaluators=retrieval")


def check_vocabulary(tokenizer: Mapping[str, object], parts: Mapping[str, TextEncoder | Decoder | None]) -> None:
    """UserError unless the tokenizer is the one that every pretrained text part was trained with.

    ``tokenizer`` is the tokenizer's node in the config. With another tokenizer the part would run, on the wrong words:
    an id stands for another word there.
    """
    kind = str(tokenizer["_target_"]).rpartition(".")[2]
    given = {HuggingFace.__name__: tokenizer.get("name_or_path"), OpenClip.__name__: OPEN_CLIP}.get(kind, kind)
    needed = {slot: part.vocabulary for slot, part in parts.items() if part is not None and part.vocabulary is not None}
    if len(set(needed.values())) > 1:
        both = " and ".join(f"{slot} reads the tokens of '{name}'" for slot, name in needed.items())
        raise UserError(f"tokenizer: {both}, and there is one tokenizer; choose parts of one vocabulary")
    for slot, name in needed.items():
        if name != given:
            fix = "open_clip" if name == OPEN_CLIP else f"hugging_face tokenizer.name_or_path={name}"
            raise UserError(
                f"tokenizer: {slot} reads the tokens of '{name}' and the tokenizer is '{given}'; use tokenizer={fix}"
            )


def _check_views(objective: WeightedSum, model: ImageTextModel) -> None:
    """UserError for an objective that asks for a text view which the model cannot run."""
    for name, part in _objectives(objective).items():
        key = f"objective.objectives.{name}"
        reads = [view for view in part.views if isinstance(view, TextView)]
        if model.decoder is None:
            if reads or isinstance(part, FusionObjective):
                raise UserError(
                    f"{key}: it needs a decoder, and there is none; choose one, or set objective.weights.{name}=0"
                )
        elif any(view != CAPTION for view in reads) and not model.decoder.takes_patterns:
            kind = type(model.decoder).__name__
            raise UserError(f"{key}: {kind} reads from left to right only; use decoder=transformer")


def _check_patch_views(objective: WeightedSum, model: ImageTextModel, plan: FreezePlan, num_steps: int) -> None:
    """UserError for an objective on masked patches if the encoder cannot encode some patches only, or never trains."""
    # The plan only unfreezes over the steps, so what is frozen at the last step never trains.
    frozen = plan.frozen_parameters(model, num_steps - 1)
    encoder = cast(nn.Module, model.encoder)
    never_trains = all(p in frozen or not p.requires_grad for p in encoder.parameters())
    for name, part in _objectives(objective).items():
        if not any(isinstance(view, PatchView) for view in part.views):
            continue
        key = f"objective.objectives.{name}"
        if not model.encoder.sees_some:
            kind = type(model.encoder).__name__
            raise UserError(f"{key}: {kind} cannot see some of its patches only; use encoder=vit")
        if never_trains:
            raise UserError(
                f"{key}: the encoder is frozen, so it would train its own head only; set objective.weights.{name}=0 "
                "or freeze less, such as freeze=none"
            )


def _check_teacher(config: Config, objective: WeightedSum) -> None:
    """UserError for a teacher that no objective learns from, and for an objective that lacks the teacher it needs."""
    given = config.teacher.run is not None or config.teacher.ema
    if given and not objective.needs_teacher:
        key = "ema" if config.teacher.ema else "run"
        raise UserError(
            f"teacher.{key}: no objective learns from a teacher; use objective=coca_distillation, or leave it"
        )
    for name, part in _objectives(objective).items():
        key = f"objective.objectives.{name}"
        if part.needs_average and not config.teacher.ema:
            raise UserError(f"{key}: it learns from the average of this run; set teacher.ema=true and train.ema_decay")
        if part.needs_teacher and not given:
            raise UserError(f"{key}: it needs a teacher; give teacher.run=DIR, or teacher.ema=true")


def _check_weights(objective: WeightedSum, num_steps: int) -> None:
    """UserError for an objective whose scheduled weight is 0 at every step of the run: it would never be computed."""
    for name, weight in objective.weights.items():
        if isinstance(weight, WeightSchedule) and not any(weight(step) > 0 for step in range(num_steps)):
            raise UserError(
                f"objective.weights.{name}: it is 0 in all of train.steps={num_steps}; let it begin earlier"
            )


def _objectives(objective: WeightedSum) -> dict[str, Objective]:
    """The objectives of a sum by name (``nn.ModuleDict`` only promises modules)."""
    return {name: cast(Objective, part) for name, part in objective.objectives.items()}


def _planned_teacher(config: Config) -> ImageTextModel:
    """The model of ``teacher.run``, without weights. Raises UserError if it cannot read the batches of this run."""
    folder = find_run(cast(str, config.teacher.run))
    theirs = load_config(folder / CONFIG, config.plugins)
    size, most = theirs.data.image_size, theirs.data.max_tokens
    if config.data.image_size != size:
        raise UserError(f"data.image_size: {config.data.image_size}, and the teacher {folder} sees images of {size}")
    if config.data.max_tokens > most:
        raise UserError(f"data.max_tokens: {config.data.max_tokens}, and the teacher {folder} reads {most} at most")
    return build_model(theirs, _ASSUMED_VOCABULARY, load_weights=False)
