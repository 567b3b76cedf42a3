"""What Hydra composes configs from, and what it says of a mistake. The only file but ``cli`` that imports Hydra."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException, OverrideParseException

from mmlm.config import Config
from mmlm.config_errors import explain

ConfigStore.instance().store(name="schema", node=Config)


def explain_composing(error: Exception, config_dir: Path, overrides: Sequence[str]) -> str:
    """One line about an exception that Hydra, OmegaConf or YAML raised while composing a config.

    ``config_dir`` and ``overrides`` (the command line) are what the config was composed of.
    """
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    return explain(error, config_dir, overrides)


def _missing_config(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").strip("/").rpartition("/")
    options = ", ".join(sorted(error.options or ()))
    return f"unknown {group or 'config'} '{name}'" + (f"; there are: {options}" if options else "")


def _unreadable_override(error: OverrideParseException) -> str:
    if "=" not in error.override:
        return f"'{error.override}' is not a setting; write key=value"
    lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See http"))]
    return f"cannot read '{error.override}': {' '.join(lines)}; a value with special characters needs '\"quotes\"'"
