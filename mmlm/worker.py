"""``python -m mmlm.worker RUN``: trains a prepared run folder, as one rank if the environment says so.

Launchers start this command. The config has been composed and checked by then, and stands in the folder.
"""

import os
import signal
import threading
from dataclasses import dataclass, field

from mmlm.cli.exits import report_user_errors
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError
from mmlm.experiment.config_file import load_config
from mmlm.launch.local import PARENT_PIPE
from mmlm.launch.meeting import Meeting, rank_from_environment
from mmlm.record.folder import CONFIG, find_run
from mmlm.run.session import train_run


@dataclass
class WorkerSettings:
    """Train a run folder that a launcher has prepared: start it, or go on from its last checkpoint."""

    plugins: list[str] = field(default_factory=list)
    """The packages, besides mmlm, that the launched config may name parts of."""


def main(argv: list[str]) -> int:
    """Trains the run folder; returns the exit status. Raises UserError."""
    settings, folders = parse_key_values(argv, WorkerSettings, "RUN")
    if len(folders) != 1:
        raise UserError(f"give one run folder, such as runs/NAME/HASH/seed=0; there are {len(folders)}")
    _stop_with_the_parent()
    folder = find_run(folders[0])
    return train_run(load_config(folder / CONFIG, settings.plugins), folder, Meeting(rank_from_environment(os.environ)))


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


if __name__ == "__main__":
    report_user_errors(main, is_rank=True)
