"""A run trained by one process or by several ranks: how they meet, and how they end when one of them cannot go on."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmlm.core.errors import LOST, PROGRAM, USER_ERROR, UserError
from mmlm.core.output import to_stderr
from mmlm.experiment.config import Config
from mmlm.experiment.device import choose_device
from mmlm.experiment.experiment import build_experiment
from mmlm.launch.meeting import Meeting, is_lost_connection, joined
from mmlm.launch.requeue import forbid_requeue, in_step
from mmlm.launch.watchdog import Watchdog
from mmlm.record.changes import Changes
from mmlm.record.console import Console
from mmlm.record.folder import STACKS
from mmlm.run.session import Session

_MISTAKE = "mistake"
"""Key in the store that ranks share: the first rank that finds a user's mistake claims it, and tells of it alone."""


def train_run(config: Config, folder: Path, meeting: Meeting, changes: Changes | None = None) -> int:
    """Trains a run to its report, as the rank that ``meeting`` makes this process; returns the exit status.

    ``changes`` are what the config changes of the base experiment's, for rank 0 to write down; None if nobody knows.

    A rank that cannot go on because another one cannot says so in one line, and its process ends with ``LOST``.
    """
    here = meeting.rank_info
    console = Console(quiet=here.rank > 0)
    try:
        with ExitStack() as stack:
            with _told_once(meeting):
                device = choose_device(config.device, here.local_rank)
                stack.enter_context(joined(meeting, config.ranks, device))
            seconds, stacks = config.ranks.watchdog_seconds, folder / STACKS
            watchdog = Watchdog(seconds, stacks, here.rank, here.world_size, meeting.store, to_stderr)
            stack.enter_context(watchdog)
            with _told_once(meeting):
                experiment = build_experiment(config, folder, device)
                return Session(config, folder, experiment, here.starter, watchdog, console, changes).run()
    except Exception as error:
        if here.alone or not is_lost_connection(error):
            raise
        status = USER_ERROR if meeting.is_claimed(_MISTAKE) else LOST
        if status == LOST:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            to_stderr(f"{PROGRAM}: rank {here.rank} has lost the others and ends ({lines[0]})")
        # Not through the interpreter's exit: threads of the broken process group may wait for ever.
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def _told_once(meeting: Meeting) -> Iterator[None]:
    """Lets one rank alone raise a user's mistake: the first that finds one. The others end with the same status.

    Left before the process group is: when the others see this rank go, they ask whether a mistake has been claimed.
    """
    try:
        yield
    except UserError:
        if meeting.claim(_MISTAKE):
            if in_step() and not meeting.rank_info.alone:
                forbid_requeue()
            raise
        sys.exit(USER_ERROR)
