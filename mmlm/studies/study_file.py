"""Finds a study by its name or its file, and reads it."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import did_you_mean, shown
from mmlm.experiment.config import CONFIG_DIR
from mmlm.experiment.config_errors import explain, not_set
from mmlm.studies.settings import Study

STUDIES = CONFIG_DIR / "study"
"""The folder of the studies that ship."""


def find_study(given: str) -> Path:
    """The file of a study: ``given`` is the name of one that ships, or the path of one's own file. Raises UserError."""
    if given.endswith((".yaml", ".yml")):
        if not Path(given).is_file():
            raise UserError(f"study: there is no file {given}")
        return Path(given)
    names = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    if given not in names:
        raise UserError(
            f"study: there is no study '{given}'{did_you_mean(given, names)}; or give a file, FOLDER/NAME.yaml"
        )
    return STUDIES / f"{given}.yaml"


def read_study(file: Path) -> Study:
    """The study in a file. Raises UserError in one line that names file, key, value and rule."""
    try:
        text = file.read_text(encoding="utf-8")
        values = OmegaConf.create(text)
        _check_shape(OmegaConf.to_container(values))
        cfg = cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Study), values))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{file.name}: {not_set(missing)}")
        _check_groups(cfg)
        return cast(Study, OmegaConf.to_object(cfg))
    except ArgumentError as error:
        raise UserError(f"{file.name}: {error}") from None
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file.name}: {explain(error)}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _check_shape(values: object) -> None:
    """UserError for axes and cells that are no mappings of lists, whose message would else tell of types of Python."""
    found = values if isinstance(values, dict) else {}
    axes = found.get("axes")
    groups = {f"axes.{axis}": levels for axis, levels in axes.items()} if isinstance(axes, dict) else {"axes": axes}
    for key, cells in {**groups, "cells": found.get("cells")}.items():
        if cells is None:
            continue
        if not isinstance(cells, dict):
            raise ArgumentError(f"{key}: {shown(cells)} is not a mapping of names to overrides")
        for name, overrides in cells.items():
            if not isinstance(overrides, list):
                wrong = f"{key}.{name}: {shown(overrides)}"
                raise ArgumentError(f"{wrong} is not a list; write [KEY=VALUE], or [] for none")


def _check_groups(cfg: DictConfig) -> None:
    """Makes the dataclasses inside, so that what they say about a value has the key of their group in front."""
    for field in fields(Study):
        if isinstance(field.type, type) and is_dataclass(field.type):
            try:
                OmegaConf.to_object(cfg[field.name])
            except ArgumentError as error:
                raise ArgumentError(f"{field.name}.{error}") from None
