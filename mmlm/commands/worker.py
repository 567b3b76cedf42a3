"""Trains a run folder that a launcher has prepared, as one rank if the environment says so."""

import os
import signal
import threading
from collections.abc import Sequence

from mmlm.cli.arguments import WorkerArguments
from mmlm.experiment.config_file import load_config
from mmlm.launch.local import PARENT_PIPE
from mmlm.launch.meeting import Meeting
from mmlm.launch.rank_info import rank_from_environment
from mmlm.record.folder import CONFIG, find_run
from mmlm.run.ranks import train_run


def train_prepared(arguments: WorkerArguments, folders: Sequence[str]) -> int:
    """Trains the run folder; returns the exit status. Raises UserError."""
    _stop_with_the_parent()
    folder = find_run(folders[0])
    return train_run(
        load_config(folder / CONFIG, arguments.plugins), folder, Meeting(rank_from_environment(os.environ))
    )


def _stop_with_the_parent() -> None:
    """Makes this rank stop as on SIGTERM, with a checkpoint, as soon as the process that started it is gone."""
    pipe = os.environ.get(PARENT_PIPE)
    if pipe is None:
        return

    def wait() -> None:
        # The parent holds the other end of the pipe: a read returns, with no byte, once the parent has died.
        if os.read(int(pipe), 1) == b"":
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
