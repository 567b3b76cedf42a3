"""A lock on a run folder, so that two processes never write into it at once."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mmlm.core.errors import UserError
from mmlm.record.folder import LOCK

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of ``flock`` that mean that the file system has no locks."""


class RunLock:
    """Holds a lock (``flock(2)``) on ``folder/lock`` while the context lasts: no second run may write into the folder.

    The operating system releases the lock when the process ends, however it ends, so the file that a killed run leaves
    behind locks nothing. The file's content (host, pid, since) serves the error message only, and is emptied on
    leaving. On NFS, Linux makes the lock hold between machines.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = print) -> None:
        """``folder`` must exist; ``tell`` receives a line of warning if the file system has no locks."""
        self._folder, self._tell = folder, tell
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        """Takes the lock. Raises UserError, which names the holder, if another process has it."""
        file = self._folder / LOCK
        try:
            # Programs that this process starts do not inherit the descriptor, which would keep the lock held after it.
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"runs: {file} cannot be opened ({error.strerror}); give runs= another folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise UserError(
                f"{self._folder} is being written by another run{holder}; wait until it ends, or give this one another "
                "name="
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _WITHOUT_LOCKS:
                raise
            self._tell(f"{self._folder}: this file system has no locks; see to it that no second run writes there")
            return self
        self._descriptor = descriptor
        # A forked process does inherit it: a data worker that outlives a killed run would keep the folder locked.
        os.register_at_fork(after_in_child=self._forget)
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        _overwrite(descriptor, json.dumps(record).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The file is not deleted: a process that has just opened it would lock the deleted one, and a third process a
        # new one, and both would go on.
        if self._descriptor is not None:
            _overwrite(self._descriptor, b"")
            self._forget()

    def _forget(self) -> None:
        """Closes this process's descriptor. Called in a forked process, the lock stays with the process that forked."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder_of(folder: Path) -> str | None:
    """Who holds the lock on ``folder``, in words (``process 7 on node1 since ...``); None if nobody does.

    For those who only look. A process that was killed leaves its record without the lock, so the lock is tried, unless
    the record is empty or names a process of this machine that is gone.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        content = os.pread(descriptor, 4096, 0)
        if not content or _is_gone(content):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _describe(content).removeprefix(", ") or "another process"
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _is_gone(content: bytes) -> bool:
    """Whether the record is of a process of this machine that there is no more."""
    try:
        record = json.loads(content)
        if record["host"] == socket.gethostname():
            os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False


def _overwrite(descriptor: int, content: bytes) -> None:
    """Replaces the file's content if it can. A full disk may prevent that; the lock is held nevertheless."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
    except OSError:
        pass


def _describe(content: bytes) -> str:
    """The holder in words: ``, process 7 on node1 since 2026-01-01 10:00:00``; empty if the file does not tell."""
    try:
        record = json.loads(content)
        return f", process {int(record['pid'])} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return ""
