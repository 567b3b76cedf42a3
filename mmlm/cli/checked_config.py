"""Composes a config and checks it, its parts included."""

from collections.abc import Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.cli.hydra_config import compose
from mmlm.core.errors import UserError
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_errors import explain


def compose_checked(overrides: Sequence[str]) -> Config:
    """The checked config of a command line. Raises UserError, also for a mandatory value that is not set."""
    cfg = compose(overrides)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"needs {', '.join(f'{key}=VALUE' for key in missing)}")
    try:
        return check_config(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
