"""What is refused in a config: parts that do not fit their constructor, numbers out of range, settings at odds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mmlm.core.errors import UserError
from mmlm.experiment.config import Config, InitSettings
from mmlm.experiment.parts import check_part
from mmlm.model.protocols import BridgeInputs, DecoderInputs, EncoderInputs, TextEncoderInputs


def _names(inputs: type) -> tuple[str, ...]:
    """The names of the fields of a dataclass that says what a constructor may ask for."""
    return tuple(field.name for field in dataclasses.fields(inputs))


PART_SLOTS: Mapping[str, tuple[str, ...]] = {
    "encoder": _names(EncoderInputs),
    "bridge": _names(BridgeInputs),
    "text_encoder": _names(TextEncoderInputs),
    "decoder": _names(DecoderInputs),
    "freeze": (),
    "objective": (),
    "tokenizer": (),
    "transform": ("image_size",),
    "optim": (),
    "schedule": (),
    "launcher": ("processes",),
    "parallel": (),
}
"""Each slot and the arguments that ``build`` supplies to its part, if its constructor asks for them."""
EMPTY_SLOTS = ("bridge", "text_encoder", "decoder", "launcher")
"""Slots that may be null, which means that the run has no such part."""
EVALUATOR_ARGUMENTS = ("language",)
"""The arguments that ``build`` supplies to an evaluator whose constructor asks for them."""


def check_config(cfg: DictConfig) -> Config:
    """The composed config as its dataclass, once every part fits its constructor and every number is in its range.

    Builds nothing; nodes of parts stay plain mappings. Raises UserError in one line for the first fault.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config), "a config is composed on the schema, so OmegaConf makes a Config of it"
    for slot, runtime in PART_SLOTS.items():
        if getattr(config, slot) is not None or slot not in EMPTY_SLOTS:
            check_part(getattr(config, slot), slot, runtime, config.plugins)
    check_part(config.data.train, "data.train", (), config.plugins)
    for group in ("validation", "test"):
        for name, node in getattr(config.data, group).items():
            check_part(node, f"data.{group}.{name}", (), config.plugins)
    for name, node in config.evaluators.items():
        check_part(node, f"evaluators.{name}", EVALUATOR_ARGUMENTS, config.plugins)
    _check_numbers(config)
    _check_init_from(config.init_from)
    _check_teacher(config)
    return config


def _check_numbers(config: Config) -> None:
    """UserError for a setting that is out of range, or has no effect beside the others."""
    positive = {
        "train.steps": config.train.steps,
        "train.batch_size": config.train.batch_size,
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.log_every": config.train.log_every,
        "train.diagnose_every": config.train.diagnose_every,
        "train.eval_every": config.train.eval_every,
        "train.save_every": config.train.save_every,
        "train.keep_last": config.train.keep_last,
        "train.clip_norm": config.train.clip_norm,
        "ranks.timeout_seconds": config.ranks.timeout_seconds,
        "ranks.watchdog_seconds": config.ranks.watchdog_seconds,
        "train.spike.threshold": config.train.spike.threshold,
        "data.image_size": config.data.image_size,
        "data.evaluation_batch_size": config.data.evaluation_batch_size,
        "model.width": config.model.width,
        "model.embedding_width": config.model.embedding_width,
    }
    for key, value in positive.items():
        if value is not None and not value > 0:
            raise UserError(f"{key}: {value} must be above 0")
    if config.ranks.watchdog_seconds >= config.ranks.timeout_seconds:
        raise UserError(
            f"ranks.watchdog_seconds: {config.ranks.watchdog_seconds:g} must be below ranks.timeout_seconds, "
            f"{config.ranks.timeout_seconds:g}, or the ranks give up before it reports"
        )
    if config.processes is not None and config.launcher is None:
        raise UserError(f"processes: {config.processes} has no effect without a launcher; add launcher=local")
    at_least = {
        "train.max_skipped_steps": (config.train.max_skipped_steps, 0),
        "train.spike.max_rewinds": (config.train.spike.max_rewinds, 0),
        "train.spike.window": (config.train.spike.window, 2),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            raise UserError(f"{key}: {value} must be at least {least}")
    if config.train.spike.threshold is not None and config.train.save_every is None:
        raise UserError("train.spike.threshold: there is no checkpoint to go back to; set train.save_every")
    if config.name is not None and config.name != Path(config.name).name:
        raise UserError(f"name: '{config.name}' must be the name of one folder, without a slash")
    both = config.data.validation.keys() & config.data.test.keys()
    if both:
        raise UserError(f"data.test.{min(both)}: a validation split has this name too; give every split its own")


def _check_init_from(settings: InitSettings) -> None:
    """UserError for settings of ``init_from`` that contradict one another or would do nothing."""
    if settings.run is not None and settings.weights is not None:
        raise UserError("init_from.weights: init_from.run is set too; give one of them")
    if settings.run is None and settings.weights is None:
        for key in ("parts", "missing", "unexpected"):
            if getattr(settings, key):
                raise UserError(f"init_from.{key}: has no effect without init_from.run or weights; give one of them")
    if settings.parts == []:
        raise UserError("init_from.parts: names no part; null takes all, and without init_from.run none is taken")


def _check_teacher(config: Config) -> None:
    """UserError for two teachers, and for a moving average as teacher that the run does not keep."""
    if config.teacher.run is not None and config.teacher.ema:
        raise UserError("teacher.ema: teacher.run is set too; give one of them")
    if config.teacher.ema and config.train.ema_decay is None:
        raise UserError("teacher.ema: there is no moving average to be the teacher; set train.ema_decay, such as 0.999")
