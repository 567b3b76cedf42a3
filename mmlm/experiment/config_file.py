"""A config written as YAML, and read again: one's own, or that of a folder that is opened.

A folder that is opened is data, whoever made it. Its config names parts of mmlm; it takes nothing from this machine's
environment, and no package that the one who opens it has not allowed by name.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import UserError
from mmlm.core.wording import first_line
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config, settings_of
from mmlm.experiment.config_errors import explain
from mmlm.experiment.targets import HOME
from mmlm.record.manifest import read_recorded, text_of, write_recorded

_RESOLVER = re.compile(r"\$\{.*:", flags=re.DOTALL)
"""A value that asks a resolver for something (``${oc.env:HOME}``); ``${model.width}`` asks the config itself."""


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
    values = _read(file)
    _check_plugins(values, plugins, file)
    try:
        cfg = _on_schema(values)
        cfg.plugins = list(plugins)
        return check_config(cfg)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{file}: {explain(error)}") from error


def recorded_config(file: Path) -> Config:
    """The config of a run as it was recorded, to be compared: its parts are not looked at. Raises UserError."""
    try:
        return settings_of(_on_schema(_read(file)))
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {explain(error)}") from error


def parse_config(text: str, where: str) -> Config:
    """The checked config in ``text`` (YAML, as of ``config_text``). ``where`` heads messages. Raises UserError."""
    try:
        return check_config(_on_schema(OmegaConf.create(text)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{where}: {explain(error)}") from error


def _read(file: Path) -> DictConfig:
    """The values in the file of a folder that is opened. Raises UserError."""
    try:
        values = OmegaConf.create(text_of(file, read_recorded(file)))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; give a run's folder, such as runs/NAME/HASH/seed=0") from None
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{file}: {explain(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); restore it from a copy") from error
    if not isinstance(values, DictConfig):
        raise UserError(f"{file}: holds no settings; restore it from a copy")
    for key, value in _texts(OmegaConf.to_container(values, resolve=False)):
        if _RESOLVER.search(value):
            raise UserError(
                f"{file}: {key}: '{value}' asks for something outside of the config, which a folder that is opened "
                "does not get; write the value itself"
            )
    return values


def _texts(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key, value) for every string in nested mappings and lists."""
    if isinstance(node, str):
        yield key, node
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from _texts(value, f"{key}.{name}" if key else str(name))


def _check_plugins(values: DictConfig, plugins: Collection[str], file: Path) -> None:
    """UserError for a part of a package that the user has not allowed; it says how to."""
    content = OmegaConf.to_container(values, resolve=False)
    named = content.get("plugins") if isinstance(content, Mapping) else None
    for key, target in _texts(content):
        if key.rpartition(".")[2] != "_target_" or target.split(".")[0] == HOME:
            continue
        if any(target.startswith(f"{plugin}.") for plugin in plugins):
            continue
        asked = [p for p in named if target.startswith(f"{p}.")] if isinstance(named, list) else []
        package = asked[0] if asked else target.split(".")[0]
        raise UserError(
            f"{file}: {key.rpartition('.')[0]} asks for the plug-in '{package}' ({target}); if you trust that package "
            f"to run code, allow it: plugins=[{package}]"
        )


def _on_schema(values: DictConfig | ListConfig) -> DictConfig:
    """``values`` merged into the schema, which refuses unknown keys and values of a wrong type."""
    return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), values))


def config_text(config: Config) -> str:
    """The config as YAML, which ``parse_config`` and ``load_config`` read."""
    return OmegaConf.to_yaml(OmegaConf.create(config_values(config)))


def save_config(config: Config, file: Path) -> None:
    """Writes the config as YAML, in one step: the file is the old one or the new one, and its checksum is on record."""
    write_recorded(file, config_text(config))
