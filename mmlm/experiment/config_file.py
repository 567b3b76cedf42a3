"""A config written as YAML, and read again: one's own, or that of a folder that is opened (``opened_config``)."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import UserError
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config, settings_of
from mmlm.experiment.config_errors import explain
from mmlm.experiment.opened_config import opened_values, read_values
from mmlm.record.manifest import write_recorded


def config_values(config: Config) -> dict[str, Any]:
    """The config as plain values that YAML and JSON can hold."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return cast(dict[str, Any], values)


def load_config(file: Path, plugins: Collection[str] = ()) -> Config:
    """The config of a run, read from the file that ``save_config`` wrote and checked again.

    ``plugins`` are the packages, besides mmlm, whose parts the user has allowed; what the file itself says of them
    counts for nothing. Raises UserError: for a file that is damaged or is not there, one that asks for another plug-in
    or for the environment, and one that is no config.
    """
    values = opened_values(file, plugins)
    try:
        cfg = _on_schema(values)
        cfg.plugins = list(plugins)
        return check_config(cfg)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{file}: {explain(error)}") from error


def recorded_config(file: Path) -> Config:
    """The config of a run as it was recorded, to be compared: its parts are not looked at. Raises UserError."""
    try:
        return settings_of(_on_schema(read_values(file)))
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {explain(error)}") from error


def parse_config(text: str, where: str) -> Config:
    """The checked config in ``text`` (YAML, as of ``config_text``). ``where`` heads messages. Raises UserError."""
    try:
        return check_config(_on_schema(OmegaConf.create(text)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{where}: {explain(error)}") from error


def _on_schema(values: DictConfig | ListConfig) -> DictConfig:
    """``values`` merged into the schema, which refuses unknown keys and values of a wrong type."""
    return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), values))


def config_text(config: Config) -> str:
    """The config as YAML, which ``parse_config`` and ``load_config`` read."""
    return OmegaConf.to_yaml(OmegaConf.create(config_values(config)))


def save_config(config: Config, file: Path) -> None:
    """Writes the config as YAML, in one step: the file is the old one or the new one, and its checksum is on record."""
    write_recorded(file, config_text(config))
