"""A config written as YAML, and read again."""

from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import UserError
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_errors import explain
from mmlm.record.folder import write_whole


def config_values(config: Config) -> dict[str, Any]:
    """The config as plain values that YAML and JSON can hold."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return cast(dict[str, Any], values)


def load_config(file: Path) -> Config:
    """The config of a run, read from the file that ``save_config`` wrote and checked again. Raises UserError."""
    try:
        return check_config(_on_schema(OmegaConf.load(file)))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; give a run's folder, such as runs/NAME/HASH/seed=0") from None
    except (OmegaConfBaseException, yaml.YAMLError) as error:
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
    """Writes the config as YAML, in one step: the file is the old one or the new one."""
    write_whole(file, config_text(config))
