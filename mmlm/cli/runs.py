"""The run that a command's ``run=`` means."""

from pathlib import Path

from mmlm.cli.exits import say
from mmlm.record.folder import newest_run


def chosen_run(path: str) -> Path:
    """The run folder at ``path``, or the one below it that was trained last, which is then said on stderr.

    Raises UserError if there is none.
    """
    folder, count = newest_run(path)
    if count > 1:
        say(f"run: {path} holds {count} runs; taking the one that was trained last, {folder}")
    return folder
