"""The cells of a model that differ from a reference in one slot: found in ``configs/``, composed by Hydra."""

from collections.abc import Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.config import CONFIG_DIR, Config, check_config
from mmlm.config_errors import explain
from mmlm.errors import UserError
from mmlm.hydra_config import compose

SLOTS = ("encoder", "bridge", "text_encoder", "decoder")


def options_of(slot: str) -> list[str]:
    """Names of the option files of a slot."""
    return sorted(file.stem for file in (CONFIG_DIR / slot).glob("*.yaml"))


def compose_cell(overrides: Sequence[str]) -> Config:
    """The checked config of a command line. Raises UserError."""
    cfg = compose(overrides)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"needs {', '.join(f'{key}=VALUE' for key in missing)}")
    try:
        return check_config(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None


def chosen_options(overrides: Sequence[str]) -> dict[str, str]:
    """The option that a command line chooses for each slot. Raises UserError."""
    choices = compose(overrides, with_hydra=True).hydra.runtime.choices
    return {slot: str(choices[slot]) for slot in SLOTS}
