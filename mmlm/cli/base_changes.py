"""What a config changes of the base experiment's, for the report."""

import functools

from mmlm.cli.hydra_config import compose
from mmlm.core.errors import UserError
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import settings_of
from mmlm.experiment.run_identity import changed_settings
from mmlm.record.changes import Change, Changes

BASE = "caption_base"
"""The experiment that every other one is compared with."""
_ITS_NAME = "experiment"
"""The setting that says how the results are called, not what is computed."""


def changes_from_base(config: Config) -> Changes | None:
    """The settings of ``config`` that change what is computed, and differ from those of ``experiment=caption_base``.

    None if that experiment cannot be composed, as where somebody has edited it.
    """
    try:
        base = _base()
    except UserError:
        return None
    found = changed_settings(base, config)
    return Changes(BASE, [Change(key, old, new) for key, old, new in found if key != _ITS_NAME])


@functools.cache
def _base() -> Config:
    """The base experiment's config. Composed once a process: nothing changes it."""
    return settings_of(compose([f"experiment={BASE}"]))
