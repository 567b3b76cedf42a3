"""Turns what OmegaConf and YAML raise about a user's config into one line: the key, the value, the fix.

Hydra's own exceptions are in ``hydra_config``, so that a config can be read without Hydra.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from mmlm.core.wording import closest, first_line, shown

_KINDS = {"Float": "a float", "Integer": "an int", "Boolean": "true or false", "Path": "a path", "String": "a string"}
_TYPES = {"float": "a float", "int": "an int", "bool": "true or false", "Path": "a path", "str": "a string"}


def explain(error: Exception, config_dir: Path | None = None, overrides: Sequence[str] = ()) -> str:
    """One line about an exception that OmegaConf or YAML raised while a config was composed or read.

    ``config_dir`` and ``overrides`` (the command line) are what the config was composed from. They are read for names
    to suggest, and for the file and line of a fault.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{_shorter(error.problem_mark.name, config_dir)}, line {error.problem_mark.line + 1}: {error.problem}"
    source = re.match(r"In '([^']+)': ", str(error))
    file = source.group(1) if source else None
    about = _about(error)
    if about is not None:
        groups = _groups(config_dir)
        if file is not None and about.full_key == file.rpartition("/")[0]:
            # Without that line Hydra puts the keys of a file under the name of its folder, where the schema has none.
            return f"{file}.yaml: has to start with the line '# @package _global_', followed by key: value lines"
        return _about_key(about, groups) + (f" (in {file}.yaml)" if file else "")
    return _about_text(error, config_dir, overrides)


def _about(error: BaseException | None) -> OmegaConfBaseException | None:
    """The error of OmegaConf that led to ``error`` and knows its key; None if there is none."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            return error
        error = error.__cause__ or error.__context__
    return None


def no_such_setting(key: str, root: object, groups: Sequence[str] = ()) -> str:
    """The message for a key that the config lacks: ``optim.lrr: no such setting; did you mean optim.lr?``

    ``root`` is the whole config and ``groups`` the config groups: both are searched for a name that was meant.
    """
    parent, _, name = key.rpartition(".")
    node = _select(root, parent) if parent else root
    siblings = [str(k) for k in node if k != "hydra"] if isinstance(node, DictConfig) and not node._is_none() else []
    if (mapping := _open_mapping(root, parent)) is not None:
        inner = key.removeprefix(f"{mapping}.")
        add = f"'+{mapping}={{{inner}: VALUE}}'" if "." in inner else f"+{key}=VALUE"
        return f"{key}: not in its file yet; add it with {add}"
    # In this order: a misspelt name at the right place; the right name at another place; anything similar.
    sibling = closest(name, siblings)
    everywhere = [k for k in keys_of(root) if not k.startswith("hydra.")]
    meant = [f"{parent}.{sibling}" if parent else sibling] if sibling else []
    meant = meant or sorted((k for k in everywhere if f".{k}".endswith(f".{name}")), key=lambda k: k.count("."))
    if not meant and not (parent and siblings):
        meant = [k for k in [closest(key, [*everywhere, *groups])] if k is not None]
    add = f" (+{key}=VALUE adds an argument that its file does not list)" if _is_in_part(root, parent) else ""
    if meant:
        return f"{key}: no such setting; did you mean {' or '.join(meant[:3])}?{add}"
    settable = sorted(name for name in siblings if name != "_target_")
    among = f"; there are: {', '.join(settable)}" if settable else ""
    return f"{key}: no such setting{among}{add}"


def _select(root: object, key: str) -> object:
    """The node at a dotted key of a config; None if it is not there or has no value."""
    return OmegaConf.select(cast(DictConfig, root), key, throw_on_missing=False)


def _open_mapping(root: object, key: str) -> str | None:
    """The empty mapping of a part that is at ``key`` or above it: such a mapping takes any key. None without one."""
    node = _select(root, key) if key else None
    if node is None and "." in key:
        return _open_mapping(root, key.rpartition(".")[0])
    is_empty = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and not node
    return key if is_empty and _is_in_part(root, key) else None


def _is_in_part(root: object, key: str) -> bool:
    """True if ``key`` is the node of a part, or lies in one."""
    path = key.split(".") if key else []
    above = (_select(root, ".".join(path[: n + 1])) for n in range(len(path)))
    return any(isinstance(node, DictConfig) and not node._is_none() and "_target_" in node for node in above)


def keys_of(node: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a config; the key of a group comes before the keys in the group."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    key: Any  # a string in settings; in the mapping of a part whatever YAML allows
    for key in node:
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from keys_of(node[key], f"{prefix}{key}.")


def unknown_keys(node: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys in a node of settings (a dataclass) that are none of its fields.

    ``+key=value`` on the command line adds such keys, past the schema.
    """
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    kind = OmegaConf.get_type(node)
    fields = {f.name for f in dataclasses.fields(kind)} if kind is not None and dataclasses.is_dataclass(kind) else None
    key: Any  # as in ``keys_of``
    for key in node:
        if fields is not None and key not in fields:
            yield f"{prefix}{key}"
        elif not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from unknown_keys(node[key], f"{prefix}{key}.")


def not_set(keys: Sequence[str], config_dir: Path | None = None) -> str:
    """The message for mandatory keys without a value. For a single key that is a config group it lists the options."""
    said = f"{', '.join(keys)}: required, and not set; write {' '.join(f'{key}=VALUE' for key in keys)}"
    if config_dir is None or len(keys) > 1 or not (config_dir / keys[0]).is_dir():
        return said
    return f"{said}; there are: {', '.join(sorted(file.stem for file in (config_dir / keys[0]).glob('*.yaml')))}"


def _groups(config_dir: Path | None) -> list[str]:
    """The names of the config groups: the folders below ``config_dir``."""
    if config_dir is None:
        return []
    return [folder.relative_to(config_dir).as_posix() for folder in sorted(config_dir.rglob("*")) if folder.is_dir()]


def _about_key(error: OmegaConfBaseException, groups: Sequence[str]) -> str:
    """The message for an error of OmegaConf about one key; ``groups`` are as in ``no_such_setting``."""
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        root = error.parent_node._get_root() if error.parent_node is not None else None
        return no_such_setting(key, root, groups)
    if isinstance(error, MissingMandatoryValue):
        return not_set([key])
    said = first_line(error)
    if isinstance(error, ValidationError):
        return f"{key}: {_misfit(said, error.value)}"
    return f"{key}: {said[:1].lower()}{said[1:]}"


def _misfit(said: str, value: object) -> str:
    """OmegaConf's sentence ``said`` about a value that does not fit, in our words."""
    if found := re.search(r"could not be converted to (\w+)", said):
        return f"{shown(_plain(value))} is not {_KINDS.get(found.group(1), found.group(1))}"
    if found := re.search(r"expected one of \[(.*)\]", said):
        return f"{shown(value)} is not one of {found.group(1)}"
    if found := re.search(r"type hint '(.*)'", said):
        kinds = [_TYPES[name] for name in re.findall(r"\w+", found.group(1)) if name in _TYPES]
        kinds += ["null"] if found.group(1).startswith("Optional") else []
        return f"{shown(_plain(value))} is not {' or '.join(kinds) or found.group(1)}"
    if "is not Optional" in said:
        return "null is not allowed here"
    if "is not a ListConfig" in said:
        return f"{shown(_plain(value))} is not a list"
    if found := re.search(r"is not a subclass of (\w+)", said):
        return f"{shown(_plain(value))} is not a group of settings ({found.group(1)})"
    return said


def _plain(value: object) -> object:
    """``value`` as plain dicts and lists if it is a node of a config."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _about_text(error: Exception, config_dir: Path | None, overrides: Sequence[str]) -> str:
    """The message for an error of Hydra that carries nothing but a text, known by how the text begins."""
    text = str(error).split("Config search path:")[0]
    if text.startswith("Config group override must be a string"):
        groups = _groups(config_dir)
        for token in overrides:
            group, _, name = token.lstrip("+").partition("=")
            if not group:
                return f"'{token}' is not a setting; write key=value"
            if config_dir is not None and group in groups:
                options = sorted(file.stem for file in (config_dir / group).glob("*.yaml"))
                if name in options:
                    continue
                among = f"; there are: {', '.join(options)}" if options else f"; its settings are {group}.KEY=VALUE"
                return f"unknown {group} '{name}'{among}"
    if found := re.search(r"Ambiguous value for argument '(.*)'", text):
        key, _, value = found.group(1).partition("=")
        return f"{key}: several values; write '{key}=[{value}]' for a list, or add --multirun to run each of them"
    if found := re.match(r"You must specify '([^']+)'.*Available options:(.*)", text, re.DOTALL):
        return f"{found.group(1)}: required, and not set; there are: {', '.join(found.group(2).split())}"
    if found := re.match(r"Multiple values for ([^.\s]+)\.", text):
        return f"{found.group(1)}: already chosen in the defaults; write {found.group(1)}=NAME, without '+'"
    return " ".join(text.split())


def _shorter(file: str, config_dir: Path | None) -> str:
    """The path of a config file; for a file below ``config_dir`` it begins with the name of that folder."""
    inside = config_dir is not None and Path(file).is_relative_to(config_dir.parent)
    return str(Path(file).relative_to(config_dir.parent)) if config_dir is not None and inside else file
