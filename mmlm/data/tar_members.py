"""What lies in a tar shard: its samples, put together from the headers of its members.

Only headers and small texts are read, and nothing is ever extracted: the name of a member is a key and no path. Names
such as ``../../a.jpg`` or ``/etc/a.jpg`` are harmless by that.

A name is split as the webdataset library does: the key is the path up to the first dot of its last part, and the rest
is the ending. ``x/0017.jpg`` has the key ``x/0017`` and the ending ``jpg``. ``22.05.png`` has the key ``22`` and the
ending ``05.png``, which is none that is known.
"""

import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field

from mmlm.core.errors import UserError
from mmlm.core.wording import cut, one_line, printable
from mmlm.data.class_folder import SUFFIXES
from mmlm.data.stored import Place, open_stream

IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
"""Endings of images."""
TEXTS = ("txt", "json", "cls")
"""Endings of texts: a caption, a JSON object with captions, a class."""
MOST_TEXT = 2**22
"""Bytes of a text member; one that is longer counts as missing."""
_BLOCK = 512
_SHOWN = 10
"""Endings that are remembered for a message."""
_GIVE = "make it anew, or leave it out"


@dataclass
class Sample:
    """The members of one key."""

    ending: str | None = None
    """That of the image; None if there is none."""
    offset: int = 0
    """Of the image's first byte in the shard."""
    length: int = 0
    """Of the image in bytes."""
    texts: dict[str, str | None] = field(default_factory=dict)
    """By ending. None for one that cannot be used."""

    def kinds(self) -> int:
        """Which texts can be used: bit i is set for ``TEXTS[i]``."""
        return sum(1 << i for i, kind in enumerate(TEXTS) if self.texts.get(kind) is not None)


@dataclass
class Members:
    """What lies in one shard."""

    samples: dict[str, Sample] = field(default_factory=dict)
    """By key, in the order of the first members."""
    links: int = 0
    """Members that are no files (links, devices) or are stored in pieces; they are passed over."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Texts that cannot be used, by reason."""
    endings: Counter[str] = field(default_factory=Counter)
    """How often each ending was found."""

    def common_endings(self) -> tuple[str, ...]:
        """The most frequent endings, as they can be printed."""
        return tuple(cut(printable(ending), 20) for ending, _ in self.endings.most_common(_SHOWN))


def read_members(shard: Place) -> Members:
    """Reads the headers and texts of a shard.

    Raises UserError, with the place in the file: for a shard that is cut off, or no tar, or compressed, and for one
    in which two members are the same text of a key, or are both images of it: which of them belong together is unknown.
    """
    members = Members()
    try:
        with open_stream(shard) as file:
            _read(shard, file, members)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or one_line(error)})") from error
    return members


def _read(shard: Place, file: io.BufferedIOBase, members: Members) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise UserError(f"{shard}: is empty, without even the end of a tar; {_GIVE}")
    offset = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember all of them
                offset = tar.offset
                if member.offset_data + member.size > size and not member.isdir():
                    raise UserError(
                        f"{shard}: is cut off: {printable(member.name)}, whose {member.size:,} bytes begin at byte "
                        f"{member.offset_data:,}, goes beyond its {size:,} bytes; {_GIVE}"
                    )
                _add(shard, file, member, members)
            offset = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if offset == 0 and file.seek(0) == 0 and file.read(2) == b"\x1f\x8b":
            raise UserError(
                f"{shard}: is compressed; unpack it (gunzip), its members cannot be found otherwise"
            ) from None
        where = f"is cut off at byte {size:,}" if offset > size else f"is damaged at byte {offset:,}"
        reason = where if offset else "is no tar"
        raise UserError(f"{shard}: {reason} ({one_line(error)}); {_GIVE}") from error
    # A tar ends in blocks of zeros. tarfile stops without a word at anything else that is no header.
    file.seek(offset)
    end = file.read(_BLOCK)
    if len(end) < _BLOCK:
        raise UserError(f"{shard}: is cut off at byte {offset + len(end):,}: the end of a tar is missing; {_GIVE}")
    if any(end):
        raise UserError(f"{shard}: is damaged at byte {offset:,}: there is no header of a member; {_GIVE}")


def _add(shard: Place, file: io.BufferedIOBase, member: tarfile.TarInfo, members: Members) -> None:
    """Adds one member to its sample. Raises UserError."""
    if member.isdir():
        return
    if not member.isreg() or member.sparse is not None:
        members.links += 1
        return
    key, ending = split_name(member.name)
    if not key:
        return  # .DS_Store and the like
    members.endings[ending] += 1
    if ending not in IMAGES and ending not in TEXTS:
        return
    sample = members.samples.setdefault(key, Sample())
    if ending in sample.texts or (ending in IMAGES and sample.ending is not None):
        what = f"{printable(key)}.{ending}"
        other = what if ending in sample.texts else f"{printable(key)}.{sample.ending}"
        raise UserError(
            f"{shard}: {what} at byte {member.offset_data:,} has the key of {other} before it; which members belong "
            f"together cannot be known; {_GIVE}"
        )
    if ending in IMAGES:
        sample.ending, sample.offset, sample.length = ending, member.offset_data, member.size
        return
    sample.texts[ending] = None
    if member.size > MOST_TEXT:
        members.unusable[f"longer than {MOST_TEXT:,} bytes"] += 1
        return
    file.seek(member.offset_data)  # tarfile knows where its next header is
    try:
        sample.texts[ending] = _text(file.read(member.size), ending)
    except _UnusableError as error:
        members.unusable[str(error)] += 1


def split_name(name: str) -> tuple[str, str]:
    """The key and the ending, in lower case, of a member. The key is empty if the last part of the name has none."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return (f"{folder}{slash}{key}" if key else "", ending.lower())


class _UnusableError(Exception):
    """Why a text cannot be used."""


def _text(data: bytes, ending: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _UnusableError("not UTF-8") from None
    if not text.strip():
        raise _UnusableError("blank")
    if ending != "json":
        return " ".join(text.split())
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _UnusableError("no JSON object")
    return text
