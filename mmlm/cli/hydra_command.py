"""Runs a command whose config Hydra composes from ``configs/`` and the command line (training).

Hydra's own messages and tracebacks are replaced: a mistake ends as that of every command (see ``exits``).
"""

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

from mmlm.cli.exits import fail, say, told_in_one_line
from mmlm.cli.fine_tune import with_run
from mmlm.cli.hydra_config import explain_composing, run_as_option, store_schema
from mmlm.cli.own_data import with_own_data
from mmlm.cli.sweep import Sweep
from mmlm.core.errors import STOPPED, USER_ERROR, UserError
from mmlm.core.stop import KILLED
from mmlm.experiment.config_errors import explain, no_such_setting, not_set, unknown_keys

_PLAIN = re.compile(r"[A-Za-z0-9_/\-+.%*@?|:$\\ ,]*")
"""What Hydra's grammar takes as it is."""


class _JobStopped(BaseException):
    """Carries the status of a job that was told to stop through Hydra, which would start the next job of a sweep."""


class _Bug(BaseException):
    """Carries an exception of ``main`` through Hydra, which would print a line of its own about an ``Exception``."""


def run_hydra(
    main: Callable[[DictConfig], int | None], config_dir: Path, config_name: str, is_rank: bool = False
) -> NoReturn:
    """Composes the config from ``config_dir`` and the command line, runs ``main(cfg)`` and exits with its status.

    Hydra's own commands (``--help``, ``--cfg job``, ``--info``, ``--multirun``) work as ever. Before ``main`` starts,
    the config is refused if a mandatory value is missing, if an interpolation does not resolve, or if ``+key=value``
    put a key where the schema has none (Hydra allows it, and the setting would be ignored). The primary config has to
    switch off Hydra's output folders and logging::

        defaults: [override hydra/job_logging: disabled, override hydra/hydra_logging: disabled]
        hydra: {run: {dir: .}, output_subdir: null, job: {chdir: false}}
    """
    config_dir = config_dir.resolve()
    store_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # without it Hydra prints exceptions and exits by itself
    sweep = Sweep()
    with told_in_one_line(is_rank):
        try:
            _check_flags(sys.argv[1:])
            typed = [hydra_override(token) for token in sys.argv[1:]]
            notices: list[str] = []
            sys.argv[1:], brought = hydra_arguments(sys.argv[1:], notices)
            with run_as_option(brought) as chosen:
                sys.argv.extend(chosen)
                sweep = Sweep.of(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(
                    _task(main, config_dir, sweep, typed, notices)
                )()
            sys.stdout.flush()
            failures = sweep.failures()
            if failures is not None:
                say(failures)
        except _JobStopped as stopped:
            sys.exit(stopped.args[0])
        except _Bug as bug:
            raise bug.args[0] from bug.args[0].__cause__
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            fail(explain_composing(error, config_dir, sys.argv[1:]), USER_ERROR)
    sys.exit(next(filter(None, sweep.statuses), 0))


def hydra_override(token: str) -> str:
    """``key=a=b`` in Hydra's grammar, ``key="a=b"``; any other token unchanged.

    The names of run folders have an equals sign (``seed=0``), and folders are called in any alphabet; Hydra's grammar
    allows neither in a plain value. Values with quotes, brackets or interpolations are left to Hydra.
    """
    key, _, value = token.partition("=")
    if token.startswith("-") or _PLAIN.fullmatch(value) or re.search(r"""["'(){}\[\]$\\]""", value):
        return token
    return f"{key}=" + ",".join(one if _PLAIN.fullmatch(one) else f'"{one}"' for one in value.split(","))


def hydra_arguments(tokens: Sequence[str], notices: list[str]) -> tuple[list[str], DictConfig | None]:
    """The arguments of a training command as Hydra understands them (``data=PATH``), and what a run brings.

    What the user should know of that is added to ``notices``. Raises UserError.
    """
    own, brought = with_run(with_own_data(tokens, notices), notices)
    return [hydra_override(token) for token in own], brought


def _task(
    main: Callable[[DictConfig], int | None], config_dir: Path, sweep: Sweep, typed: Sequence[str], notices: list[str]
) -> Callable[[DictConfig], None]:
    """A function for Hydra to call once a job, which runs ``main`` and adds its exit status to those of ``sweep``.

    (Hydra drops the return value of a job.) A user's mistake is printed at once and the sweep goes on with its next
    job; a bug ends the sweep, and so does a job that was told to stop: whoever stops a sweep means all of it. A
    launcher of Hydra may run the job in another process, whose ``sweep`` nobody reads: there a mistake or a bad
    status is raised, for the launcher to hand back. ``typed`` are the arguments to resume by, and
    ``notices`` are said once, if the config has no mistake.
    """
    process = os.getpid()

    @functools.wraps(main)  # Hydra names the job after the module of main
    def task(cfg: DictConfig) -> None:
        here = os.getpid() == process
        if here:
            sys.argv[1:] = typed
            sweep.begin()
        try:
            status = _checked(main, cfg, config_dir, notices)
        except UserError as error:
            if not here:
                raise
            say(str(error))
            status = USER_ERROR
        except Exception as error:
            raise _Bug(error) if here else error from error.__cause__
        if status and not here:
            raise UserError(f"the job ended with status {status}")
        if status == STOPPED or status > KILLED:
            raise _JobStopped(status)
        sweep.statuses.append(status)

    return task


def _checked(main: Callable[[DictConfig], int | None], cfg: DictConfig, config_dir: Path, notices: list[str]) -> int:
    """Refuses an incomplete config, then runs ``main`` and returns its exit status.

    Raises UserError for unknown keys, mandatory keys without a value, and every error of OmegaConf.
    """
    try:
        unknown = next(unknown_keys(cfg), None)
        if unknown is not None:
            raise UserError(no_such_setting(unknown, _schema_only(cfg)))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(not_set(missing, config_dir))
        OmegaConf.to_container(cfg, resolve=True)
        while notices:
            say(notices.pop(0))
        return main(cfg) or 0
    except ConfigAttributeError:
        raise  # a bug: the code reads an attribute that the config does not have
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error


def _schema_only(cfg: DictConfig) -> DictConfig:
    """A copy of the config without the keys that its schema lacks: a message must not suggest those."""
    known = cfg.copy()
    OmegaConf.set_struct(known, False)
    for key in list(unknown_keys(known)):
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(known, parent) if parent else known
        OmegaConf.set_struct(node, False)
        del node[name]
    return known


def _check_flags(argv: Sequence[str]) -> None:
    """Refuses an unknown option in one line, before Hydra's parser does so with its usage in front."""
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
