"""The cells of a model that differ from a reference in one slot: found in ``configs/``, composed by Hydra."""

from collections.abc import Sequence

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.config import CONFIG_DIR, CONFIG_NAME, Config, check_config
from mmlm.config_errors import explain
from mmlm.errors import UserError

SLOTS = ("encoder", "bridge", "text_encoder", "decoder")


def options_of(slot: str) -> list[str]:
    """Names of the option files of a slot."""
    return sorted(file.stem for file in (CONFIG_DIR / slot).glob("*.yaml"))


def compose_cell(overrides: Sequence[str]) -> Config:
    """The checked config of a command line. Raises UserError."""
    cfg = _compose(overrides, with_hydra=False)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"needs {', '.join(f'{key}=VALUE' for key in missing)}")
    try:
        return check_config(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None


def chosen_options(overrides: Sequence[str]) -> dict[str, str]:
    """The option that a command line chooses for each slot. Raises UserError."""
    choices = _compose(overrides, with_hydra=True).hydra.runtime.choices
    return {slot: str(choices[slot]) for slot in SLOTS}


def _compose(overrides: Sequence[str], with_hydra: bool) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(CONFIG_NAME, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(explain(error, CONFIG_DIR, overrides)) from None
