"""Composes a config and checks it, its parts included."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.cli.hydra_command import hydra_arguments
from mmlm.cli.hydra_config import compose, run_as_option
from mmlm.core.errors import UserError
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_errors import explain, unknown_keys


def compose_checked(overrides: Sequence[str]) -> Config:
    """The checked config of a command line. Raises UserError, also for a mandatory value that is not set."""
    return _checked(compose(overrides))


def compose_typed(words: Sequence[str]) -> Config:
    """The checked config of the words that somebody types after ``python -m mmlm.train``. Raises UserError."""
    own, brought = hydra_arguments(words, [])
    with run_as_option(brought) as chosen:
        return _checked(compose([*own, *chosen]))


def _checked(cfg: DictConfig) -> Config:
    """Raises UserError."""
    unknown = next(unknown_keys(cfg), None)
    if unknown is not None:  # +key=value adds one, which would do nothing
        raise UserError(f"{unknown}: no such setting")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"needs {', '.join(f'{key}=VALUE' for key in missing)}")
    try:
        return check_config(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
