"""The embeddings of a folder of images, kept in a file and brought up to date when the folder changes.

    index-<digest>.safetensors     vectors float32[N, E], one a content; in its header the model's digest and the files

A vector belongs to the *content* of a file and to one model. A file whose size and times are those on record is not
read again; any other is read, and embedded only if its content is new: an image that is moved or copied keeps its
vector, one that is changed in place does not. Each model has a file of its own.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.wording import one_line
from mmlm.data.class_folder import SUFFIXES
from mmlm.data.images import decode_image

FORMAT = "1"
BATCH = 64
"""Images that are read and embedded at a time."""
SAVE_EVERY = 50
"""Batches after which the index is saved: who is interrupted goes on from there."""
_SETTLED = 2 * 10**9
"""Nanoseconds after a change within which another one may leave a file with the same times."""

Embed = Callable[[list[Tensor]], Tensor]
"""uint8[3, H, W] images -> float32[B, E], unit length."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file has not been touched."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970."""
    changed: int
    """The same of the file's entry, which no program can set back; 0 is never right, so that the file is read again."""

    @classmethod
    def of(cls, file: Path) -> "Stamp":
        """That of a file as it is. Raises OSError."""
        found = file.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class ImageIndex:
    """The embeddings of the images of a folder."""

    folder: Path
    model: str
    """The digest of the model that embedded them."""
    names: tuple[str, ...]
    """The images that could be read, as paths inside of the folder, sorted."""
    vectors: Tensor
    """float32[len(names), E], unit length, on the CPU."""
    unreadable: tuple[CorruptImage, ...]
    embedded: int
    """How many contents were embedded to bring the index up to date."""


@dataclass
class _State:
    """What the file of an index holds."""

    stamps: dict[str, tuple[Stamp, str]]
    """By name: the stamp, and the SHA-256 of the content."""
    rows: dict[str, int]
    """By SHA-256: the row of its vector."""
    parts: list[Tensor]
    """float32[n, E] each; rows count through them."""

    def vectors(self) -> Tensor:
        """float32[N, E]: all vectors."""
        self.parts = [torch.cat(self.parts) if self.parts else torch.zeros(0, 0)]
        return self.parts[0]

    def add(self, contents: Sequence[str], vectors: Tensor) -> None:
        """Adds the vectors of new contents."""
        first = len(self.rows)
        self.rows |= {content: first + i for i, content in enumerate(contents)}
        self.parts = [*(part for part in self.parts if len(part)), vectors]

    def keep_only(self, contents: Sequence[str]) -> None:
        """Drops all other vectors."""
        self.parts = [self.vectors()[[self.rows[content] for content in contents]]]
        self.rows = {content: row for row, content in enumerate(contents)}


def default_folder(images: Path) -> Path:
    """Where the index of a folder of images is kept if nobody says: below the user's folder for caches."""
    cache = os.environ.get("XDG_CACHE_HOME")
    home = Path(cache) if cache else Path.home() / ".cache"
    path = images.resolve()
    return home / "mmlm" / "search" / f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def index_file(folder: Path, model: str) -> Path:
    """The file in ``folder`` of the index of the model with that digest."""
    return folder / f"index-{model[:16]}.safetensors"


def images_below(folder: Path) -> list[str]:
    """The images at any depth below a folder, by their endings, as sorted paths inside of it. Raises UserError."""
    found = sorted(_images(folder))
    if not found:
        raise UserError(f"images: {folder} holds no image ({', '.join(SUFFIXES)})")
    return found


def _images(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield inside.as_posix()


def update_index(
    folder: Path,
    file: Path,
    model: str,
    embed: Embed,
    now: Callable[[], int],
    tick: Callable[[str], None],
    tell: Callable[[str], None],
) -> ImageIndex:
    """The embeddings of the images in ``folder``, by way of the index in ``file``, which is brought up to date.

    ``model`` is the digest of the model that ``embed`` embeds with, ``now`` the time in nanoseconds since 1970.
    ``tick`` is called before each batch with what is done, ``tell`` with what was wrong with the file, which is then
    made anew. Raises UserError for a folder without images, and for a file that cannot be written.
    """
    names = images_below(folder)
    state = _load(file, model, tell)
    before = state.stamps
    state.stamps = {}
    changed = [name for name in names if not _is_known(folder / name, before.get(name), state)]
    state.stamps |= {name: before[name] for name in set(names).difference(changed)}
    unreadable: list[CorruptImage] = []
    embedded = 0
    batches = range(0, len(changed), BATCH)
    for number, first in enumerate(batches, start=1):
        tick(f"embedding {folder.name}, batch {number} of {len(batches)}")
        embedded += _take_in(folder, changed[first : first + BATCH], state, embed, now, unreadable)
        if number % SAVE_EVERY == 0:
            _save(file, model, state)
    kept = list(dict.fromkeys(content for _, content in state.stamps.values()))
    if changed or before.keys() != state.stamps.keys() or state.rows.keys() != set(kept):
        state.keep_only(kept)
        _save(file, model, state)
    readable = tuple(name for name in names if name in state.stamps)
    vectors = state.vectors()[[state.rows[state.stamps[name][1]] for name in readable]]
    return ImageIndex(folder, model, readable, vectors, tuple(unreadable), embedded)


def _is_known(file: Path, known: tuple[Stamp, str] | None, state: _State) -> bool:
    """Whether a file is as it is on record, by its size and times, and its content has a vector."""
    try:
        return known is not None and known[1] in state.rows and Stamp.of(file) == known[0]
    except OSError:
        return False


def _take_in(
    folder: Path,
    names: Sequence[str],
    state: _State,
    embed: Embed,
    now: Callable[[], int],
    unreadable: list[CorruptImage],
) -> int:
    """Reads files, embeds what is new in them, and puts them on record; returns how many contents were embedded."""
    new: dict[str, Tensor] = {}
    contents: dict[str, tuple[Stamp, str]] = {}
    for name in names:
        try:
            stamp = Stamp.of(folder / name)  # before it is read: a change while it is read shows next time
            data = (folder / name).read_bytes()
            content = hashlib.sha256(data).hexdigest()
            if content not in state.rows and content not in new:
                new[content] = decode_image(data, name)
        except OSError as error:
            unreadable.append(CorruptImage(name, f"cannot be read ({error.strerror})"))
        except CorruptImage as error:
            unreadable.append(error)
        else:
            settled = now() - max(stamp.modified, stamp.changed) > _SETTLED
            contents[name] = (stamp if settled else Stamp(stamp.size, stamp.modified, 0), content)
    if new:
        state.add([*new], embed(list(new.values())).float().cpu())
    state.stamps |= contents
    return len(new)


def _load(file: Path, model: str, tell: Callable[[str], None]) -> _State:
    """What the file holds, if it is of this model; nothing if there is no file, or a damaged one."""
    if not file.is_file():
        return _State({}, {}, [])
    try:
        with safe_open(file, "pt") as opened:
            header, vectors = opened.metadata() or {}, opened.get_tensor("vectors")
        if (header["format"], header["model"]) == (FORMAT, model):
            stamps = {
                str(name): (Stamp(int(size), int(modified), int(changed)), str(content))
                for name, size, modified, changed, content in json.loads(header["files"])
            }
            contents = [str(content) for content in json.loads(header["contents"])]
            if header["sha256"] == _sum(vectors, header["files"], header["contents"]):
                return _State(stamps, {content: row for row, content in enumerate(contents)}, [vectors])
            tell(f"{file} was damaged; it is made anew")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        tell(f"{file} was damaged; it is made anew")
    return _State({}, {}, [])


def _save(file: Path, model: str, state: _State) -> None:
    """Writes the file whole, in one step. Raises UserError."""
    files = [[n, s.size, s.modified, s.changed, content] for n, (s, content) in sorted(state.stamps.items())]
    vectors = state.vectors()
    header = {"format": FORMAT, "model": model, "files": json.dumps(files), "contents": json.dumps([*state.rows])}
    header["sha256"] = _sum(vectors, header["files"], header["contents"])
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": vectors}, draft, header)
        draft.replace(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"out: {file.parent} cannot be written ({one_line(error)}); give another folder") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _sum(vectors: Tensor, *texts: str) -> str:
    """The SHA-256 of all that an index holds."""
    digest = hashlib.sha256()
    digest.update(vectors.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()
