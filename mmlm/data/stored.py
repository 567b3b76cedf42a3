"""Files by a path or by a URL such as ``s3://bucket/00000.tar``: found, and read at any place.

A URL is read by fsspec, with patience: an answer that does not come in time, or a connection that breaks, is asked for
again after a while, and what fails in the end is an ``OSError`` that says so in a few words, as for a file on a disk.
Nothing is kept open between processes: a ``Url`` is a text, so that it can be sent to a data worker.
"""

import errno
import io
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa

from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stable_hash
from mmlm.core.local_files import URL_SEPARATOR
from mmlm.core.wording import first_line

SEPARATOR = URL_SEPARATOR
"""What tells a URL from a path."""
READ_AHEAD = 2**22
"""Bytes of a URL that are asked for at once where a file is read from its beginning to its end."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Patience:
    """How long to wait for an object store."""

    timeout_s: float = 60.0
    """For one answer."""
    tries: int = 4
    first_wait_s: float = 1.0
    """Before the second try; it doubles before each further one."""


PATIENCE = Patience()


@dataclass(frozen=True)
class Url:
    """A file or folder of an object store, with those ways of a ``Path`` that readers need."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """What is behind the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """What is before it."""
        return Url(self.text.rpartition("/")[0])

    def absolute(self) -> "Url":
        """As it is: there are no others."""
        return self


Place = Path | Url
"""Where a file lies."""


@dataclass(frozen=True)
class Version:
    """What tells that a file has been changed."""

    size: int
    """In bytes."""
    changed: int
    """Nanoseconds since 1970 for a file on a disk; for a URL, a number of whatever its store tells of its content."""


def place_of(place: str | Path) -> Place:
    """A URL or a path, by its text."""
    return Url(place) if isinstance(place, str) and SEPARATOR in place else Path(place)


def within(folder: Place, name: str) -> Place:
    """A file by its name from a folder on, or by its whole path or URL."""
    return Url(name) if SEPARATOR in name else folder / name


def is_file(place: Place) -> bool:
    """Whether there is such a file. Raises UserError if a store does not say."""
    if isinstance(place, Path):
        return place.is_file()
    try:
        version_of(place)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from error
    return True


def matching_urls(pattern: str, patience: Patience = PATIENCE) -> list[str]:
    """The URLs of a pattern with ``*``, sorted. Raises UserError if the store does not answer."""
    url = Url(pattern)
    try:
        found = _patiently(lambda: _system(url)[0].glob(_system(url)[1]), url, patience)
    except OSError as error:
        raise UserError(f"{pattern}: cannot be listed ({error.strerror})") from error
    system = _system(url)[0]
    return sorted(str(system.unstrip_protocol(name)) for name in found)


def version_of(place: Place, patience: Patience = PATIENCE) -> Version:
    """The size of a file, and what changes when it is changed. Raises OSError."""
    if isinstance(place, Path):
        stat = place.stat()
        return Version(stat.st_size, stat.st_mtime_ns)
    info = _patiently(lambda: _info(place), place, patience)
    if info.get("type") == "directory" or info.get("size") is None:
        raise IsADirectoryError(errno.EISDIR, "is no file", str(place))
    told = [str(info.get(key)) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")]
    return Version(int(info["size"]), stable_hash(" ".join(told)))


def whole_name(place: Place) -> str:
    """One name for each file, of all that it may be called. Raises UserError for a URL that fsspec does not know."""
    if isinstance(place, Path):
        return str(place.resolve())
    system, path = _system(place)
    return str(system.unstrip_protocol(path))


def read_whole(place: Place, patience: Patience = PATIENCE) -> bytes:
    """The content of a file. Raises OSError."""
    if isinstance(place, Path):
        return place.read_bytes()
    return _patiently(lambda: _system(place)[0].cat_file(_system(place)[1]), place, patience)


def open_stream(place: Place) -> io.BufferedIOBase:
    """A file to read from its beginning to its end, with some steps back. Raises OSError."""
    return place.open("rb") if isinstance(place, Path) else io.BufferedReader(UrlFile(place), READ_AHEAD)


def open_for_arrow(place: Place) -> pa.NativeFile:
    """A file for pyarrow's readers. Raises OSError.

    It is not mapped into memory: a mapped file that somebody cuts off kills the process.
    """
    return pa.OSFile(str(place), "rb") if isinstance(place, Path) else pa.PythonFile(UrlFile(place), "r")


class OpenedFile:
    """A file that is read at places of it. It is closed when nobody holds it any more."""

    def __init__(self, place: Place) -> None:
        """Raises OSError. That a URL is not there is found out when it is read."""
        self._url = place if isinstance(place, Url) else None
        self._file = -1
        if isinstance(place, Path):
            self._file = os.open(place, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; fewer where the file ends. Raises OSError."""
        if self._url is not None:
            return read_range(self._url, offset, length)
        parts, there = [], 0
        while there < length and (part := os.pread(self._file, length - there, offset + there)):
            parts.append(part)
            there += len(part)
        return b"".join(parts)


class UrlFile(io.RawIOBase):
    """A URL as a file of Python's; each read is a question to the store."""

    def __init__(self, url: Url, patience: Patience = PATIENCE) -> None:
        """Raises OSError."""
        self._url, self._patience, self._at = url, patience, 0
        self._size = version_of(url, patience).size

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def size(self) -> int:
        """In bytes."""
        return self._size

    def tell(self) -> int:
        """See ``io.RawIOBase``."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See ``io.RawIOBase``."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``. Raises OSError."""
        length = min(len(buffer), self._size - self._at)
        data = read_range(self._url, self._at, length, self._patience) if length > 0 else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_range(url: Url, offset: int, length: int, patience: Patience = PATIENCE) -> bytes:
    """Bytes of a URL; fewer where it ends. Raises OSError."""
    if length == 0:
        return b""
    return _patiently(lambda: _system(url)[0].cat_file(_system(url)[1], offset, offset + length), url, patience)


def _info(url: Url) -> dict[str, Any]:
    system, path = _system(url)
    system.invalidate_cache()  # a listing that was kept would hide that a file has been changed
    return system.info(path)


def _system(url: Url) -> tuple[Any, str]:
    """The file system of a URL (fsspec keeps one for each process), and the path in it. Raises UserError."""
    try:
        return fsspec.core.url_to_fs(url.text)
    except ImportError as error:
        raise UserError(f"{url}: {first_line(error)}; pip install it") from error
    except ValueError as error:
        raise UserError(f"{url}: {first_line(error)}; give a path, or a URL that fsspec knows") from error


def _patiently(ask: Callable[[], Answer], url: Url, patience: Patience) -> Answer:
    """The answer to a question that may be asked several times. Raises OSError, in a few words."""
    failed = ""
    for number in range(patience.tries):
        if number:
            time.sleep(patience.first_wait_s * 2 ** (number - 1))
        try:
            return _in_time(ask, patience.timeout_s)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            # No second question helps. Stores tell it without the words of the system.
            raise type(error)(error.errno, error.strerror or first_line(error) or "not there", str(url)) from error
        except UserError:
            raise
        except Exception as error:  # each store raises what its own network library does; it is told below
            failed = first_line(error) or type(error).__name__
    raise OSError(errno.EIO, f"{failed}; {patience.tries} tries", str(url))


def _in_time(ask: Callable[[], Answer], seconds: float) -> Answer:
    """The answer to a question. Raises TimeoutError, and what the question raises."""
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # raised below, in the thread that asks
            answers.put((None, error))

    # A daemon: a question that is never answered must not keep the process from ending.
    threading.Thread(target=work, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # None only beside an error, or where the question has that answer
