"""``python -m mmlm.train experiment=NAME``: trains, evaluates, and writes the report of one run."""

import dataclasses
import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from mmlm.checkpoints.checkpoint import latest_checkpoint
from mmlm.checkpoints.files import step_of
from mmlm.cli.exits import report_user_errors
from mmlm.cli.hydra_command import run_hydra
from mmlm.core.errors import USER_ERROR, UserError
from mmlm.experiment.build import build_launcher
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR, CONFIG_NAME, Config, Resume
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_file import config_text, parse_config
from mmlm.experiment.run_identity import run_folder
from mmlm.launch.meeting import Meeting, RankInfo, rank_from_environment
from mmlm.record.folder import CHECKPOINTS, CONFIG, MANIFEST
from mmlm.run.resume import begin_or_go_on, record_config
from mmlm.run.session import command, make_folder, train_run


def main(cfg: DictConfig, meeting: Meeting | None = None) -> int:
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
    return train_run(config, folder, meeting)


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
    status = launcher(folder, command())
    if new and status == USER_ERROR and {file.name for file in folder.iterdir()} <= {CONFIG, MANIFEST}:
        for name in (CONFIG, MANIFEST):  # the parts could not even be built: there is no run to keep a folder for
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    return status


def _as_rank_zero(meeting: Meeting) -> None:
    """Composes the config on rank 0, publishes it to the other ranks, and trains. Ends the process."""
    if any(flag in sys.argv[1:] for flag in ("-m", "--multirun")):
        raise UserError("--multirun: several runs cannot share these ranks; start each by itself, or use launcher=")
    run_hydra(lambda cfg: main(cfg, meeting), CONFIG_DIR, CONFIG_NAME, is_rank=True)


def _as_other_rank(meeting: Meeting) -> int:
    """Waits for the config that rank 0 publishes, and trains; returns the exit status."""
    message = meeting.receive()
    if isinstance(message, int):  # rank 0 could not compose a config, and ends with this status
        return message
    folder, text = message
    return train_run(parse_config(text, str(folder)), folder, meeting)


def start() -> None:
    """Runs the command, as a single process or as one of the ranks that torchrun or srun started. Ends the process."""
    rank_info = rank_from_environment(os.environ)
    meeting = Meeting(rank_info)
    if rank_info.alone:
        run_hydra(lambda cfg: main(cfg, meeting), CONFIG_DIR, CONFIG_NAME)
    if rank_info.rank > 0:
        report_user_errors(lambda argv: _as_other_rank(meeting), is_rank=True)
    # Rank 0. If it ends before the config is published, the others have to be told, or they would wait for it.
    status = 1
    try:
        report_user_errors(lambda argv: _as_rank_zero(meeting), is_rank=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        meeting.refuse(status)


if __name__ == "__main__":
    start()
