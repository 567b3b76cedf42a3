"""What becomes of a run that is in the folder already: ``resume=auto``, ``changed`` and ``never``."""

import shutil
from contextlib import suppress
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.experiment.config import Config, Resume
from mmlm.experiment.config_file import recorded_config, save_config
from mmlm.experiment.run_identity import differences
from mmlm.record.folder import ASIDE, CHECKPOINTS, CONFIG
from mmlm.record.lock import RunLock
from mmlm.record.manifest import DamagedFileError

_SHOWN = 10
"""Differences that a message lists."""
_BEGUN_WITH = ("tokenizer.", "init_from.")
"""Settings that act only where a run begins: changed on the way, they would do nothing."""


def begin_or_go_on(config: Config, folder: Path) -> list[str]:
    """Makes sure that a run of ``config`` may begin or go on in ``folder``; returns lines to tell the user.

    To be called once a command, before anything is built. With ``resume=never`` a run that is there is renamed to
    ``<folder>.before-<n>``. Raises UserError if it has another config and ``resume`` is ``auto``, or if the change
    cannot have an effect any more, or if another process is writing it. The config that is there is only compared:
    what is built, and which plug-ins it may come from, is up to ``config``.
    """
    file = folder / CONFIG
    if config.resume is Resume.never:
        there = file.exists() or (folder / CHECKPOINTS).exists()
        return [f"what was in {folder} is now in {_move_aside(folder)}"] if there and not config.preflight else []
    try:
        changed = differences(recorded_config(file), config) if file.exists() else []
    except DamagedFileError as error:
        if config.resume is Resume.changed:
            return [f"{error.file} is damaged, and is written anew by this command's config"]
        raise
    if not changed:
        return []
    shown = listed(changed, _SHOWN, "; ", "; and")
    if config.resume is Resume.auto:
        raise UserError(
            f"{folder} holds a run of another config ({shown}); go on with the new one by resume=changed, or give it "
            "another name="
        )
    late = [difference for difference in changed if difference.startswith(_BEGUN_WITH)]
    if late:
        raise UserError(f"resume: {late[0]} has no effect on a run that has begun; give this one another name=")
    return [f"goes on with another config: {shown}"]


def record_config(config: Config, folder: Path, step: int) -> None:
    """Writes the config of a run that goes on from ``step``; one that differs stays as ``config.before-step=N.yaml``.

    To be called once the run has been resumed, so that a change that does not work is not recorded.
    """
    file = folder / CONFIG
    if file.exists():
        with suppress(DamagedFileError):  # written anew; ``begin_or_go_on`` has told of it
            if not differences(recorded_config(file), config):
                return
        kept = folder / f"config.before-step={step:06d}.yaml"
        if not kept.exists():  # changed twice at one step: what led to it is in the first
            shutil.copyfile(file, kept)
    save_config(config, file)


def _move_aside(folder: Path) -> Path:
    with RunLock(folder, tell=lambda line: None):
        number = 1
        while (aside := folder.with_name(f"{folder.name}{ASIDE}{number}")).exists():
            number += 1
        return folder.rename(aside)
