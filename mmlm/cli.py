"""What every command has in common: a user's mistake ends in one line on stderr and exit status 2, without a traceback.

Two kinds of command: ``run_hydra`` for those composed from ``configs/`` (training), and ``report_user_errors`` with
``parse_key_values`` for the small ones (``python -m mmlm.caption run=DIR a.png b.png``). Exit status: 0 done, 2 a
user's mistake, 75 stopped and saved, 130 interrupted, 69 other ranks lost, 1 a bug (with its traceback), or whatever
``main`` returns.
"""

import argparse
import ast
import dataclasses
import enum
import functools
import inspect
import itertools
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

from mmlm.config_errors import explain, no_such_setting, not_set, unknown_keys
from mmlm.errors import UserError
from mmlm.hydra_config import explain_composing

PROGRAM = "mmlm"
USER_ERROR = 2
INTERRUPTED = 130
LOST = 69
"""A rank cannot go on because another one is gone or silent. What sysexits.h calls unavailable."""
STOPPED = 75
"""Asked to stop, and saved: the same command goes on. What sysexits.h calls a temporary failure."""

Settings = TypeVar("Settings")


class _Bug(BaseException):
    """Carries an exception of ``main`` past Hydra, which would print a line of its own about it."""


def report_user_errors(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs ``main(sys.argv[1:])`` and exits with its status, or with 2 and one line if the user made a mistake."""
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        _fail(str(error), USER_ERROR)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    sys.exit(status)


def run_hydra(main: Callable[[DictConfig], int | None], config_dir: Path, config_name: str) -> NoReturn:
    """Composes the config from ``config_dir`` and the command line, runs ``main(cfg)`` and exits with its status.

    Hydra's own commands (``--help``, ``--cfg job``, ``--info``, ``--multirun``) work as ever. Before ``main`` starts,
    the config is refused if a mandatory value is missing, if an interpolation does not resolve, or if ``+key=value``
    put a key where the schema has none (Hydra allows it, and the setting would be ignored). The primary config has to
    switch off Hydra's output folders and logging::

        defaults: [override hydra/job_logging: disabled, override hydra/hydra_logging: disabled]
        hydra: {run: {dir: .}, output_subdir: null, job: {chdir: false}}
    """
    config_dir = config_dir.resolve()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print exceptions and exit by itself
    statuses: list[int] = []
    try:
        _check_flags(sys.argv[1:])
        sys.argv[1:] = [hydra_override(token) for token in sys.argv[1:]]
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(
            _task(main, config_dir, statuses)
        )()
    except _Bug as bug:
        raise bug.args[0] from bug.args[0].__cause__
    except UserError as error:
        _fail(str(error), USER_ERROR)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        _fail(explain_composing(error, config_dir, sys.argv[1:]), USER_ERROR)
    sys.exit(next(filter(None, statuses), 0))


def hydra_override(token: str) -> str:
    """``key=a=b`` as Hydra can read it, ``key="a=b"``; any other token as it stands.

    Run folders have an equals sign in their name (``seed=0``), and Hydra's grammar has none in a plain value. Values
    with quotes, brackets or interpolations are left to it.
    """
    key, _, value = token.partition("=")
    if token.startswith("-") or "=" not in value or re.search(r"""["'(){}\[\]$\\]""", value):
        return token
    return f"{key}=" + ",".join(f'"{one}"' if "=" in one else one for one in value.split(","))


def _say(message: str) -> None:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)


def _fail(message: str, status: int) -> NoReturn:
    _say(message)
    sys.exit(status)


def _task(
    main: Callable[[DictConfig], int | None], config_dir: Path, statuses: list[int]
) -> Callable[[DictConfig], None]:
    """``main`` for Hydra to call, once a job. Hydra drops what ``main`` returns: it is added to ``statuses``.

    A user's mistake is told at once and the next job of a sweep goes on; a bug ends the sweep. A launcher may run the
    job in another process, whose ``statuses`` nobody sees: there the mistake is raised, for the launcher to hand back.
    """
    process = os.getpid()

    @functools.wraps(main)  # Hydra names the job after the module of main
    def task(cfg: DictConfig) -> None:
        here = os.getpid() == process
        try:
            status = _checked(main, cfg, config_dir)
        except UserError as error:
            if not here:
                raise
            _say(str(error))
            status = USER_ERROR
        except Exception as error:
            raise _Bug(error) if here else error from error.__cause__
        if status and not here:
            raise UserError(f"the job ended with status {status}")
        statuses.append(status)

    return task


def _checked(main: Callable[[DictConfig], int | None], cfg: DictConfig, config_dir: Path) -> int:
    """Refuses an incomplete config, then runs ``main``. Raises UserError for what OmegaConf refuses."""
    try:
        unknown = next(unknown_keys(cfg), None)
        if unknown is not None:
            raise UserError(no_such_setting(unknown, _schema_only(cfg)))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(not_set(missing, config_dir))
        OmegaConf.to_container(cfg, resolve=True)
        return main(cfg) or 0
    except ConfigAttributeError:
        raise  # code that reads an attribute the config lacks is wrong, not the user
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error


def _schema_only(cfg: DictConfig) -> DictConfig:
    """The config without the keys that its schema lacks, so that they are not suggested."""
    known = cfg.copy()
    OmegaConf.set_struct(known, False)
    for key in list(unknown_keys(known)):
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(known, parent) if parent else known
        OmegaConf.set_struct(node, False)
        del node[name]
    return known


def _check_flags(argv: Sequence[str]) -> None:
    """Refuses an unknown option in one line; Hydra's parser would print its usage first."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        _, extra = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    if extra and extra[0].startswith("-"):
        raise UserError(f"{extra[0]}: no such option; settings are written key=value, see --help")
    if extra:
        raise UserError(f"{extra[0]}: write options such as --multirun before all settings or after them")


# Small commands


def parse_key_values(
    argv: Sequence[str], schema: type[Settings], positional: str | None = None
) -> tuple[Settings, list[str]]:
    """Reads ``key=value`` arguments into an instance of the dataclass ``schema``, and returns the other arguments too.

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
    hint = _hint(schema, key.split("."))
    if hint is None:
        advice = f" (if it is no setting but {positional}: write ./{key}=...)" if positional else ""
        raise UserError(no_such_setting(key, cfg) + advice)
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    try:
        if text == "null" and types.NoneType in members:
            value = None
        elif {*members} <= {str, Path, types.NoneType}:
            value = text  # as it stands: run=007 is not the number 7
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
    others = f" {positional} ..." if positional else ""
    about = [inspect.cleandoc(schema.__doc__ or ""), "", f"settings: key=value ...{others}"]
    return "\n".join([*about, *_help_lines(schema, "")])


def _help_lines(schema: type, prefix: str) -> list[str]:
    """Each field with its default and the docstring under it, nested dataclasses with dots."""
    lines, docs = [], field_docs(schema)
    for field in dataclasses.fields(schema):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        lines += ["", f"  {prefix}{field.name}={_default(value)}"]
        lines += textwrap.wrap(docs.get(field.name, ""), 100, initial_indent="      ", subsequent_indent="      ")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            lines += _help_lines(type(value), f"{prefix}{field.name}.")
    return lines


def _default(value: object) -> str:
    if value is dataclasses.MISSING or value == "???":
        return "...  (required)"
    if dataclasses.is_dataclass(value):
        return "..."
    if isinstance(value, enum.Enum):
        return value.name
    return "null" if value is None else str(value)


def field_docs(schema: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line, by the field's name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    docs = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, below in itertools.pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs
