"""What a launcher is."""

from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """Starts the ranks of a run somewhere."""

    def __call__(self, folder: Path, command: str) -> int:
        """Starts what trains the prepared run in ``folder`` (its config.yaml is there); returns the exit status.

        ``command`` is what the user typed, which resumes the run. Raises UserError.
        """
        ...
