"""A folder of images with a JSON Lines file of captions."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import UserError
from mmlm.core.wording import cut
from mmlm.data.images import read_encoded, read_image
from mmlm.data.inside import check_inside
from mmlm.data.json_file import json_of_line
from mmlm.data.text_files import numbered_lines


@dataclass
class _Entry:
    """One image (or one text without an image) with all that the lines of a captions file say about it."""

    image: str | None
    line: int
    """The first line about it, from 1."""
    captions: list[Caption] = field(default_factory=list)
    concept: str | None = None


_LINE_KEYS = ("image", "caption", "captions", "language", "concept")


class ImageFolder:
    """A folder of images with a JSON Lines file of captions.

    A line is ``{"image": "cat.jpg", "captions": ["a cat", ...]}``, or ``"caption": "a cat"`` for a single caption. The
    keys ``"language"`` (of the line's captions) and ``"concept"`` (positives key) are optional; other keys are ignored.
    The captions of several lines about one image are joined. ``"image": null`` is text without an image. The example's
    id is the image's path inside the folder, or ``line <number>`` for text only.
    """

    def __init__(self, folder: str | Path, captions: str = "captions.jsonl", outside: bool = False) -> None:
        """Reads the captions file and checks that every image is there. UserError names the line that is wrong.

        ``outside`` allows it to name images that do not lie in ``folder`` (``../a.png``, ``/home/a.png``): a captions
        file from elsewhere should not choose among the files of this machine.
        """
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise UserError(f"{self._folder}: there is no such folder; give the one that holds {captions}")
        path = self._folder / captions
        if not path.is_file():
            raise UserError(
                f'{path}: there is no such file; write one line {{"image": ..., "captions": [...]}} an image'
            )
        entries: dict[str, _Entry] = {}
        for number, line in numbered_lines(path):
            if line.strip():
                _add_line(entries, line, f"{path}:{number}", number, outside)
        if not entries:
            raise UserError(f"{path}: has no line; write one for each image")
        self._ids = list(entries)
        self._entries = list(entries.values())
        self._check_images(path)

    def __len__(self) -> int:
        """Number of images (and texts without one)."""
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        """See :class:`Source`."""
        entry = self._entries[index]
        image = None if entry.image is None else read_image(self._folder / entry.image)
        return Example(self._ids[index], image, tuple(entry.captions), entry.concept)

    def encoded(self, index: int) -> bytes | None:
        """See :class:`GivesBytes`."""
        entry = self._entries[index]
        return None if entry.image is None else read_encoded(self._folder / entry.image)

    def captions(self) -> Iterator[Caption]:
        """See :class:`Source`."""
        for entry in self._entries:
            yield from entry.captions

    def texts(self) -> Iterator[ExampleTexts]:
        """See :class:`ListsTexts`."""
        for id, entry in zip(self._ids, self._entries, strict=True):
            yield ExampleTexts(id, tuple(entry.captions), entry.concept, entry.image is not None)

    def _check_images(self, captions: Path) -> None:
        named = [entry for entry in self._entries if entry.image is not None]
        missing = [entry for entry in named if not _is_file(self._folder / str(entry.image))]
        if missing:
            first = missing[0]
            count = f"{len(missing)} of {len(named)} images are missing"
            name = cut(f"{self._folder / str(first.image)}", 200)
            raise UserError(
                f"{name}: there is no such file ({count}), first in line {first.line} of {captions.name}; add them or "
                "remove their lines"
            )


def _is_file(path: Path) -> bool:
    """False also for what cannot be the name of a file: one that is too long (a caption, say), or with a zero byte."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _add_line(entries: dict[str, _Entry], line: str, where: str, number: int, outside: bool) -> None:
    """Adds one line of a captions file to ``entries`` (by example id). ``where`` is ``file:line``, for messages."""
    fields = json_of_line(line, where)
    if not isinstance(fields, dict):
        raise UserError(f'{where}: must be an object such as {{"image": "a.jpg", "captions": ["..."]}}')
    # Keys that we do not know are ignored, but one that is nearly ours is a misspelling.
    for key in fields:
        close = difflib.get_close_matches(key, _LINE_KEYS, n=1, cutoff=0.8)
        if close and key not in _LINE_KEYS:
            raise UserError(f"{where}: has the key {key!r}; did you mean {close[0]!r}?")
    if "image" not in fields or ("caption" in fields) == ("captions" in fields):
        raise UserError(f"{where}: needs 'image' and either 'captions' or 'caption', but has {sorted(fields)}")
    texts = [fields["caption"]] if "caption" in fields else fields["captions"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: 'caption' must be a string and 'captions' a list of strings, not {texts!r}")
    for key in ("image", "language", "concept"):
        if not isinstance(fields.get(key), str | None):
            raise UserError(f"{where}: {key!r} must be a string, not {fields[key]!r}")
    image, concept = fields["image"], fields.get("concept")
    check_inside(image, where, outside)
    entry = entries.setdefault(f"line {number}" if image is None else image, _Entry(image, number, concept=concept))
    if entry.concept != concept:
        raise UserError(
            f"{where}: gives {image} the concept {concept!r}, an earlier line {entry.concept!r}; choose one"
        )
    entry.captions += [Caption(text, fields.get("language")) for text in texts]
