"""The values in the config of a folder that is opened, before anything of it is imported.

A folder that is opened is data, whoever made it. Its config names parts of mmlm; it takes nothing from this machine's
environment, and no package that the one who opens it has not allowed by name.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import UserError
from mmlm.core.wording import first_line
from mmlm.experiment.config_errors import explain
from mmlm.record.manifest import read_recorded, text_of

HOME = "mmlm"
"""The package whose parts any config may name."""
_RESOLVER = re.compile(r"\$\{.*:", flags=re.DOTALL)
"""A value that asks a resolver for something (``${oc.env:HOME}``); ``${model.width}`` asks the config itself."""


def opened_values(file: Path, plugins: Collection[str]) -> DictConfig:
    """The values in the config of a folder that is opened, if it asks for nothing that the user has not allowed.

    ``plugins`` are the packages, besides mmlm, that it may name parts of. Raises UserError.
    """
    values = read_values(file)
    _check_plugins(values, plugins, file)
    return values


def read_values(file: Path) -> DictConfig:
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
