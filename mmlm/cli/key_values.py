"""``key=value`` arguments of the small commands, such as ``python -m mmlm.caption run=DIR a.png b.png``.

A dataclass is the schema of a command; its docstrings are the text of ``--help``. Training, whose config is composed
from ``configs/``, reads its arguments by ``hydra_command`` instead.
"""

import ast
import dataclasses
import enum
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import UserError
from mmlm.experiment.config_errors import explain, no_such_setting, not_set

Settings = TypeVar("Settings")


def parse_key_values(
    argv: Sequence[str], schema: type[Settings], positional: str | None = None
) -> tuple[Settings, list[str]]:
    """An instance of the dataclass ``schema`` filled from ``key=value`` arguments, and the list of other arguments.

    Types are OmegaConf's (no Literal: use an Enum); a field without default is required; a nested dataclass is reached
    with dots. ``positional`` names the other arguments for the help (``IMAGE``); where it is None they are refused.

    An argument is a setting if what stands before its first ``=`` is made of identifiers and dots: ``run=DIR`` is,
    ``./a=b.png`` and ``pictures/a=b.png`` are not, and nothing after ``--`` is. ``--help`` prints the settings with the
    docstring under each field, and exits. Raises UserError.
    """
    cfg = OmegaConf.structured(schema)
    positionals: list[str] = []
    for index, token in enumerate(argv):
        key, equals, text = token.partition("=")
        if token == "--":
            positionals += argv[index + 1 :]
            break
        if token in ("--help", "-h"):
            print(_help(schema, positional))
            sys.exit(0)
        if token.startswith("-"):
            raise UserError(f"{token}: no such option; settings are written key=value, see --help")
        if equals and all(name.isidentifier() for name in key.split(".")):
            _set(cfg, schema, key, text, positional)
        else:
            positionals.append(token)
    if positional is None and positionals:
        raise UserError(f"'{positionals[0]}' is not a setting; write key=value, see --help")
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(not_set(missing))
        return typing.cast(Settings, OmegaConf.to_object(cfg)), positionals
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None


def _set(cfg: DictConfig, schema: type, key: str, text: str, positional: str | None) -> None:
    """Sets ``key`` of ``cfg`` to the value that ``text`` is written for. Raises UserError."""
    hint = _hint(schema, key.split("."))
    if hint is None:
        advice = f" (if it is no setting but {positional}: write ./{key}=...)" if positional else ""
        raise UserError(no_such_setting(key, cfg) + advice)
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    try:
        if text == "null" and types.NoneType in members:
            value = None
        elif {*members} <= {str, Path, types.NoneType}:
            value = text  # not read as YAML: run=007 is a name and not the number 7
        else:
            value = OmegaConf.from_dotlist([f"value={text}"]).value
        OmegaConf.update(cfg, key, value)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        broken = f"{key}: cannot read {text!r}"
        raise UserError(broken if isinstance(error, yaml.YAMLError) else explain(error)) from None


def _hint(schema: type, path: Sequence[str]) -> object | None:
    """The annotation of a field, or None if there is no such field."""
    hint: object = schema
    for name in path:
        if not dataclasses.is_dataclass(hint) or not isinstance(hint, type):
            return None
        hint = typing.get_type_hints(hint).get(name)
    return hint


def _help(schema: type, positional: str | None) -> str:
    """The text of ``--help``."""
    others = f" {positional} ..." if positional else ""
    about = [inspect.cleandoc(schema.__doc__ or ""), "", f"settings: key=value ...{others}"]
    return "\n".join([*about, *_help_lines(schema, "")])


def _help_lines(schema: type, prefix: str) -> list[str]:
    """The lines of each field: its key with the default, then its docstring. Fields of nested dataclasses have dots."""
    lines, docs = [], field_docs(schema)
    for field in dataclasses.fields(schema):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines += ["", f"  {prefix}{field.name}={_default(value)}"]
        lines += textwrap.wrap(docs.get(field.name, ""), 100, initial_indent="      ", subsequent_indent="      ")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            lines += _help_lines(type(value), f"{prefix}{field.name}.")
    return lines


def _default(value: object) -> str:
    """The default of a field as a user would write it."""
    if value is dataclasses.MISSING or value == "???":
        return "...  (required)"
    if dataclasses.is_dataclass(value):
        return "..."
    if isinstance(value, enum.Enum):
        return value.name
    return "null" if value is None else str(value)


def field_docs(schema: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line, by the field's name."""
    # Python keeps no docstring of a field, so they are read from the source: each is the string below its field.
    docs: dict[str, str] = {}
    for base in schema.__bases__:
        docs |= field_docs(base) if dataclasses.is_dataclass(base) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, below in itertools.pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs
