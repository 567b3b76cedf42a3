"""Trains one composed experiment, or launches the processes that train it."""

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from mmlm.checkpoints.checkpoint import latest_checkpoint
from mmlm.checkpoints.files import step_of
from mmlm.cli.base_changes import changes_from_base
from mmlm.core.errors import USER_ERROR, UserError
from mmlm.experiment.build import build_launcher
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import Config, Resume
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_file import config_text, parse_config
from mmlm.experiment.run_identity import run_folder
from mmlm.launch.meeting import Meeting
from mmlm.launch.rank_info import RankInfo
from mmlm.record.changes import record_changes
from mmlm.record.folder import CHANGES, CHECKPOINTS, CONFIG, MANIFEST
from mmlm.run.ranks import train_run
from mmlm.run.resume import begin_or_go_on, record_config
from mmlm.run.session import command, make_folder


def train(cfg: DictConfig, meeting: Meeting | None = None) -> int:
    """Trains one composed experiment, or launches the processes that train it; returns the exit status.

    ``meeting`` is where the ranks exchange messages, if this process is rank 0 of several. Raises UserError.
    """
    config = check_config(cfg)
    folder = run_folder(config)
    check_compatible(config)
    meeting = meeting or Meeting(RankInfo())
    if meeting.rank_info.attempt:
        # Restarted by SLURM or torchrun: the run that is in the folder now is this one, which must not be moved aside.
        config = dataclasses.replace(config, resume=Resume.auto if config.resume is Resume.never else config.resume)
    for message in begin_or_go_on(config, folder):
        print(message)
    if config.launcher is not None and not config.preflight:
        return _launch(config, folder, meeting.rank_info)
    meeting.publish(folder, config_text(config))
    return train_run(config, folder, meeting, None if config.preflight else changes_from_base(config))


def _launch(config: Config, folder: Path, rank_info: RankInfo) -> int:
    """Writes the config into the run folder, from which ranks read it, and starts them; returns the exit status."""
    if not rank_info.alone:
        raise UserError(
            f"launcher: this process is one of {rank_info.world_size} ranks of {rank_info.starter} already; "
            "use launcher=none"
        )
    launcher = build_launcher(config)
    new = not folder.exists()
    make_folder(folder)
    # ``record_config`` needs the step for a changed config only, and finding it means checksums of large files.
    newest = latest_checkpoint(folder / CHECKPOINTS)[0] if config.resume is Resume.changed else None
    record_config(config, folder, 0 if newest is None else step_of(newest))
    changes = changes_from_base(config)
    if changes is not None:
        record_changes(folder, changes)
    status = launcher(folder, command())
    if new and status == USER_ERROR and {file.name for file in folder.iterdir()} <= {CONFIG, CHANGES, MANIFEST}:
        for name in (
            CONFIG,
            CHANGES,
            MANIFEST,
        ):  # the parts could not even be built: there is no run to keep a folder for
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    return status


def train_as_told(meeting: Meeting) -> int:
    """Waits for the config that rank 0 publishes, and trains as another rank; returns the exit status."""
    message = meeting.receive()
    if isinstance(message, int):  # rank 0 could not compose a config, and ends with this status
        return message
    folder, text = message
    return train_run(parse_config(text, str(folder)), folder, meeting)
