"""One run at a time in a folder."""

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


class RunLock:
    """Holds ``folder/lock`` by ``flock(2)`` while the context lasts, so that no second run writes into the folder.

    The system lets go of it when the process ends, however that happens: a file that a killed run left is no lock. What
    the file says (host, pid, since) is for the message only, and is taken back in the end. On NFS, Linux makes the lock
    hold between machines.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = print) -> None:
        """``folder`` is there already; ``tell`` takes one line where the file system has no locks."""
        self._folder, self._tell = folder, tell
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        """Raises UserError if another process holds it, saying which."""
        file = self._folder / LOCK
        try:
            # Python's descriptors are not inherited: what a run starts does not go on holding it.
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
        os.register_at_fork(after_in_child=self._forget)  # a data worker that outlives a killed run holds nothing
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        _overwrite(descriptor, json.dumps(record).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The file stays: one that is deleted under another process that has just opened it would be locked twice.
        if self._descriptor is not None:
            _overwrite(self._descriptor, b"")
            self._forget()

    def _forget(self) -> None:
        """Closes this process's descriptor; in a forked process the one that forked it goes on holding the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _overwrite(descriptor: int, content: bytes) -> None:
    """Best effort: a full disk may keep the description out, but the lock is held all the same."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
    except OSError:
        pass


def _describe(content: bytes) -> str:
    """``, process 7 on node1 since 2026-01-01 10:00:00``; empty if the holder has not said so."""
    try:
        record = json.loads(content)
        return f", process {int(record['pid'])} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return ""
