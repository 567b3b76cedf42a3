"""Commands that are composed from ``configs/`` by Hydra (training)."""

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

from mmlm.cli.exits import fail, say
from mmlm.cli.hydra_config import explain_composing
from mmlm.core.errors import INTERRUPTED, USER_ERROR, UserError
from mmlm.experiment.config_errors import explain, no_such_setting, not_set, unknown_keys


class _Bug(BaseException):
    """Carries an exception of ``main`` past Hydra, which would print a line of its own about it."""


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
        fail(str(error), USER_ERROR)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        fail(explain_composing(error, config_dir, sys.argv[1:]), USER_ERROR)
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
            say(str(error))
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
