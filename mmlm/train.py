"""``python -m mmlm.train experiment=NAME``: trains, evaluates, and writes the report of one run."""

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from omegaconf import DictConfig

from mmlm.cli.exits import report_user_errors, told_in_one_line
from mmlm.cli.hydra_command import run_hydra
from mmlm.cli.imports import quick_imports
from mmlm.cli.sweep import FLAGS
from mmlm.core.errors import UserError
from mmlm.experiment.config import CONFIG_DIR, CONFIG_NAME
from mmlm.launch.rank_info import RankInfo, rank_from_environment

if TYPE_CHECKING:
    from mmlm.launch.meeting import Meeting


def main(cfg: DictConfig, meeting: "Meeting | None" = None) -> int:
    """Trains one composed experiment, or launches the processes that train it; returns the exit status.

    ``meeting`` is where the ranks exchange messages, if this process is rank 0 of several. Raises UserError.
    """
    with quick_imports():
        from mmlm.commands.train import train

    return train(cfg, meeting)


def start() -> None:
    """Runs the command, as a single process or as one of the ranks that torchrun or srun started. Ends the process."""
    with told_in_one_line():
        rank_info = rank_from_environment(os.environ)
    if rank_info.alone:
        run_hydra(main, CONFIG_DIR, CONFIG_NAME)
    report_user_errors(lambda argv: _as_rank(rank_info), is_rank=True)


def _as_rank(rank_info: RankInfo) -> int:
    """Trains as one of several ranks: rank 0 composes the config, and the others are told it. Raises UserError."""
    with quick_imports():
        from mmlm.commands.train import train_as_told
        from mmlm.launch.meeting import Meeting

    meeting = Meeting(rank_info)
    if rank_info.rank > 0:
        return train_as_told(meeting)
    # If rank 0 ends before the config is published, the others have to be told, or they would wait for it.
    status = 1
    try:
        _as_rank_zero(meeting)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        meeting.refuse(status)


def _as_rank_zero(meeting: "Meeting") -> NoReturn:
    """Composes the config on rank 0, publishes it to the other ranks, and trains. Ends the process."""
    if any(flag in sys.argv[1:] for flag in FLAGS):
        raise UserError("--multirun: several runs cannot share these ranks; start each by itself, or use launcher=")
    run_hydra(lambda cfg: main(cfg, meeting), CONFIG_DIR, CONFIG_NAME, is_rank=True)


if __name__ == "__main__":
    start()
