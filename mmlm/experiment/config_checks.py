"""What is refused in a config: parts that do not fit their constructor, settings out of range or at odds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mmlm.core.errors import ArgumentError, UserError
from mmlm.experiment.config import Config
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
    "launcher": ("processes", "plugins"),
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
    config = settings_of(cfg)
    for slot, runtime in PART_SLOTS.items():
        if getattr(config, slot) is not None or slot not in EMPTY_SLOTS:
            check_part(getattr(config, slot), slot, runtime, config.plugins)
    check_part(config.data.train, "data.train", (), config.plugins)
    for group in ("validation", "test"):
        for name, node in getattr(config.data, group).items():
            check_part(node, f"data.{group}.{name}", (), config.plugins)
    for name, node in config.evaluators.items():
        check_part(node, f"evaluators.{name}", EVALUATOR_ARGUMENTS, config.plugins)
    for name, node in config.logger.items():
        check_part(node, f"logger.{name}", (), config.plugins)
    _check_together(config)
    return config


def settings_of(cfg: DictConfig) -> Config:
    """The composed config as its dataclass, once every number is in its range; parts are not looked at.

    Raises UserError.
    """
    _check_settings(cfg, Config)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config), "a config is composed on the schema, so OmegaConf makes a Config of it"
    return config


def _check_settings(node: DictConfig, kind: type, key: str = "") -> None:
    """Makes the dataclass of every group of settings in a config, the inner ones first.

    What one says about its own values (in ``__post_init__``) becomes a UserError with the key of its group in front.
    """
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            _check_settings(node[field.name], field.type, f"{key}{field.name}.")
    if key:
        try:
            OmegaConf.to_object(node)
        except ArgumentError as error:
            raise UserError(f"{key}{error}") from None


def _check_together(config: Config) -> None:
    """UserError for settings of different groups that are at odds, or have no effect beside each other."""
    if config.processes is not None and config.launcher is None:
        raise UserError(f"processes: {config.processes} has no effect without a launcher; add launcher=local")
    if config.train.spike.threshold is not None and config.train.save_every is None:
        raise UserError("train.spike.threshold: there is no checkpoint to go back to; set train.save_every")
    if config.name is not None and config.name != Path(config.name).name:
        raise UserError(f"name: '{config.name}' must be the name of one folder, without a slash")
    if config.teacher.ema and config.train.ema_decay is None:
        raise UserError("teacher.ema: there is no moving average to be the teacher; set train.ema_decay, such as 0.999")
