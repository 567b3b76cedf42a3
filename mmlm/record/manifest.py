"""``manifest.jsonl``: the SHA-256 of every file of a run folder or an exported folder, so that no damage slips through.

    {"file": "config.yaml", "sha256": "...", "check": "..."}
    {"file": "metrics.jsonl", "prefixes": [{"bytes": 812, "sha256": "..."}], "check": "..."}

A line is appended, and flushed to the disk, *before* its file is put in place; a file may be any that was ever
announced. So a process that is killed between the two leaves the file as it was, which an earlier line has announced,
and two processes that write at once never take a line from each other. Of a file that grows, the newest line counts: it
has the state that the file begins with, or both where a shorter one is about to replace a longer one. Each line carries
a check of itself. A file that no line names, as in folders older than the manifest, is read as it is.

The files of a checkpoint have a manifest of their own (``checkpoints/files.py``).
"""

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlm.core.errors import UserError
from mmlm.core.wording import utf8
from mmlm.record.folder import (
    CHANGES,
    CONFIG,
    DATA,
    ENVIRONMENT,
    FIGURES,
    ITEMS,
    MANIFEST,
    METRICS,
    OVERLAP,
    PER_ITEM,
    REPORT,
    SAMPLES,
    SCORES,
    TOKENIZER,
    WATCHED,
    write_whole,
    write_whole_bytes,
)


class DamagedFileError(UserError):
    """A file that is not as it was written. The message names it, what goes on without it, and what to do."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: is damaged ({reason}); {_advice(file)}")
        self.file, self.reason = file, reason

    def __reduce__(self) -> tuple[type["DamagedFileError"], tuple[Path, str]]:
        # Errors travel between ranks by pickle, whose default calls the class with the joined message alone.
        return DamagedFileError, (self.file, self.reason)


_EVALUATED = "no training is lost: python -m mmlm.evaluate run={folder} writes it anew"
_ADVICE: Mapping[str, str] = {
    CONFIG: "restore it from a copy, or train on by resume=changed, which writes it anew",
    ENVIRONMENT: "restore it from a copy, or remove it: all works without it but precision=auto, which is chosen anew",
    METRICS: "restore it from a copy, or take its rows as they are",
    WATCHED: "remove it: python -m mmlm.evaluate run={folder} watch=true scores the checkpoints that are kept anew",
    DATA: "remove it: then changed data are not noticed",
    OVERLAP: "it is counted anew by the next training",
    FIGURES: "remove it: everything works without it, under plain names",
    SCORES: _EVALUATED,
    SAMPLES: _EVALUATED,
    ITEMS: _EVALUATED,
    PER_ITEM: _EVALUATED,
    CHANGES: "remove it: then the report does not show what the run changes",
    REPORT: "python -m mmlm.report run={folder} writes it anew",
    TOKENIZER: "restore it from a copy; without it no text can be read, and figures and reports still can",
}
"""By the first part of a file's name in its folder: what to do."""


def _advice(file: Path) -> str:
    folder = file.parent.parent if file.parent.name == TOKENIZER else file.parent
    name = file.relative_to(folder)
    how = _ADVICE.get(name.parts[0], "restore it from a copy").format(folder=folder)
    return f"{how}; if you changed it on purpose: python -m mmlm.verify run={folder} accept=[{name.as_posix()}]"


@dataclass(frozen=True)
class Prefix:
    """What a file that grows begins with."""

    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "Prefix":
        """The prefix that is all of ``content``."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def begins(self, content: bytes) -> bool:
        """Whether ``content`` begins with it."""
        return len(content) >= self.size and Prefix.of(content[: self.size]) == self


class Growing:
    """The prefix that is all of a file so far, kept up to date without reading the file again."""

    def __init__(self, content: bytes = b"") -> None:
        self._size, self._sum = len(content), hashlib.sha256(content)

    def add(self, content: bytes) -> None:
        """To be called with everything that is appended to the file."""
        self._size += len(content)
        self._sum.update(content)

    @property
    def prefix(self) -> Prefix:
        """What the file holds by now."""
        return Prefix(self._size, self._sum.hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.jsonl`` says."""

    sums: Mapping[str, Collection[str]]
    """Name of a file in the folder -> every SHA-256 that was announced of it."""
    prefixes: Mapping[str, Collection[Prefix]]
    """Name of a file that grows -> what it may begin with."""
    damaged: tuple[int, ...] = ()
    """Numbers of the lines that cannot be read, from 1."""

    def fault(self, name: str, content: bytes) -> str | None:
        """What is wrong with the content of a file; None if nothing is, or if no line names the file."""
        beginnings = self.prefixes.get(name)
        if beginnings is not None and not any(prefix.begins(content) for prefix in beginnings):
            least = min(prefix.size for prefix in beginnings)
            if len(content) < least:
                return f"it has {len(content)} bytes, and at least {least} were written{self.or_line()}"
            return f"its first {least} bytes are not those that were written{self.or_line()}"
        sums = self.sums.get(name)
        if sums is not None and hashlib.sha256(content).hexdigest() not in sums:
            return f"it does not have the checksum it was written with{self.or_line()}"
        return None

    def or_line(self) -> str:
        """What a message adds if it may be the manifest that is wrong."""
        return f", or line {self.damaged[0]} of {MANIFEST} is not" if self.damaged else ""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; an empty one without the file."""
    sums: dict[str, list[str]] = {}
    prefixes: dict[str, tuple[Prefix, ...]] = {}
    damaged = []
    file = folder / MANIFEST
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = _checked(line)
            if "sha256" in record:
                sums.setdefault(record["file"], []).append(record["sha256"])
            else:
                prefixes[record["file"]] = tuple(Prefix(p["bytes"], p["sha256"]) for p in record["prefixes"])
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
    return Manifest(sums, prefixes, tuple(damaged))


def announce(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Appends a line for each file that is about to be written, by its name in ``folder``, unless it has that line."""
    known = read_manifest(folder).sums
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    _append(folder, [{"file": name, "sha256": sha} for name, sha in sums.items() if sha not in known.get(name, ())])


def announce_files(folder: Path, files: Iterable[Path]) -> None:
    """The same for files that are complete and that nobody reads yet: those of a folder that gets its name later."""
    records = []
    for file in sorted(files):
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        records.append({"file": file.relative_to(folder).as_posix(), "sha256": sha256})
    _append(folder, records)


def announce_prefixes(folder: Path, name: str, *prefixes: Prefix) -> None:
    """Appends what the file ``name``, which grows, begins with from now on: any of ``prefixes``."""
    _append(folder, [{"file": name, "prefixes": [{"bytes": p.size, "sha256": p.sha256} for p in prefixes]}])


def write_recorded(file: Path, text: str) -> None:
    """``write_whole``, with the file's checksum in the manifest of its folder."""
    write_recorded_bytes(file, utf8(text))


def write_recorded_bytes(file: Path, content: bytes) -> None:
    """``write_whole_bytes``, with the file's checksum in the manifest of its folder."""
    announce(file.parent, {file.name: content})
    write_whole_bytes(file, content)


def read_recorded(file: Path, folder: Path | None = None) -> bytes:
    """The content of a file, compared with the manifest of ``folder`` (None: the folder that it lies in).

    Raises DamagedFileError, and FileNotFoundError as reading does.
    """
    folder = folder or file.parent
    while True:
        content = file.read_bytes()
        reason = read_manifest(folder).fault(file.relative_to(folder).as_posix(), content)
        if reason is None:
            return content
        # A run that is training may have written between the two, and what it then announced is not what was read.
        if file.read_bytes() == content:
            raise DamagedFileError(file, reason)


def check_files(folder: Path, below: str = "", spared: Collection[str] = ()) -> None:
    """Compares every file that the manifest of ``folder`` names, or those in its folder ``below``; but for ``spared``.

    Raises DamagedFileError for one that differs or is gone.
    """
    manifest = read_manifest(folder)
    for name in manifest.sums:
        if name in spared or not name.startswith(f"{below}/" if below else ""):
            continue
        reason = fault_of(folder, name, manifest)
        if reason is not None:
            raise DamagedFileError(folder / name, reason)


def fault_of(folder: Path, name: str, manifest: Manifest) -> str | None:
    """What is wrong with the file ``name`` of a folder; None if nothing is."""
    file = folder / name
    try:
        if name in manifest.prefixes:
            return manifest.fault(name, file.read_bytes())
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return "it is missing"
    sums = manifest.sums.get(name, (sha256,))
    return None if sha256 in sums else f"it does not have the checksum it was written with{manifest.or_line()}"


def accept(folder: Path, name: str) -> None:
    """Puts the file ``name`` on record as it is: somebody has changed it on purpose. Of the manifest, drops bad lines.

    Raises FileNotFoundError.
    """
    content = (folder / name).read_bytes()
    if name == MANIFEST:
        damaged = read_manifest(folder).damaged
        lines = content.decode(errors="replace").split("\n")
        write_whole(folder / name, "\n".join(line for n, line in enumerate(lines, start=1) if n not in damaged))
    elif name in read_manifest(folder).prefixes:
        announce_prefixes(folder, name, Prefix.of(content))
    else:
        announce(folder, {name: content})


def text_of(file: Path, content: bytes) -> str:
    """``content`` as text. Raises DamagedFileError if it is no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DamagedFileError(file, "it is no UTF-8") from None


def _checked(line: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError, KeyError or TypeError for a line that is not as it was written."""
    record = json.loads(line)
    if record.pop("check") != _check(record):
        raise ValueError("the line does not have the check it was written with")
    return dict(record)


def _check(record: Mapping[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


def _append(folder: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Appends lines in one piece, and waits until they are on the disk."""
    text = "".join(json.dumps({**record, "check": _check(record)}) + "\n" for record in records)
    if not text:
        return
    descriptor = os.open(folder / MANIFEST, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        # A line that was cut off, by a crash, must not swallow the one that follows it.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + text).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
