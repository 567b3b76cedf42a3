"""The interface of launchers."""

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
