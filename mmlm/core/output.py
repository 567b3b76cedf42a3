"""Output that goes away: a pipe whose reader has ended, a closed terminal, a full disk. It is no reason to stop."""

import os
import select
import sys
from contextlib import suppress
from typing import TextIO


class LastingOutput:
    """A stream to write to, whatever becomes of it: what cannot be written is dropped, from the first failure on."""

    def __init__(self, file: TextIO | None = None) -> None:
        """``file`` is None for the stdout of the moment."""
        self._file = file
        self._gone = False

    def _target(self) -> TextIO:
        file = sys.stdout if self._file is None else self._file
        # While a progress bar of rich is shown, stdout is a stream that prints above it, by way of this one.
        return getattr(file, "rich_proxied_file", file)

    @property
    def encoding(self) -> str:
        """Of the stream below."""
        return getattr(self._target(), "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream below is a terminal."""
        return not self._gone and self._target().isatty()

    def fileno(self) -> int:
        """Of the stream below."""
        return self._target().fileno()

    def write(self, text: str, /) -> int:
        """Writes, or drops, the text; returns its length."""
        if not self._gone:
            try:
                self._target().write(text)
            except OSError:
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Hands on what has been written, or drops it."""
        if not self._gone:
            try:
                self._target().flush()
            except OSError:
                self._drop()

    def _drop(self) -> None:
        self._gone = True
        if self._file is None:
            discard_output()


def to_stderr(text: str) -> None:
    """Prints a line to stderr, at once; nowhere if that is gone."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def discard_output() -> None:
    """Leads stdout to nowhere, with what is still in its buffer, which could not be written at the process's end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def is_unread() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    with suppress(OSError, ValueError):
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in watch.poll(0))
    return False
