"""The interface of launchers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """Starts the ranks of a run somewhere."""

    def __call__(self, folder: Path, command: str) -> int:
        """Starts the training of the prepared run in ``folder``, which has a config.yaml; returns the exit status.

        ``command`` is the command line that the user typed, which also resumes the run. Raises UserError if the ranks
        cannot be started.
        """
        ...


def worker_arguments(folder: Path, plugins: Sequence[str]) -> list[str]:
    """The arguments of ``python -m mmlm.worker``: what a launcher has each rank do for the prepared run in ``folder``.

    ``plugins`` are packages that its config may name parts of, which a worker does not take from the folder's word.
    """
    return [str(folder), *([f"plugins=[{','.join(plugins)}]"] if plugins else [])]
