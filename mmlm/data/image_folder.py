"""A folder of images with a JSON Lines file of captions."""

import difflib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from mmlm.core.errors import UserError
from mmlm.core.wording import cut, whole_characters
from mmlm.data.caption_choice import by_kind
from mmlm.data.caption_table import CaptionTable, Row, TwoConcepts
from mmlm.data.captioned_images import CaptionedImages
from mmlm.data.existing_files import ExistingFiles
from mmlm.data.inside import check_inside
from mmlm.data.json_file import json_of_line
from mmlm.data.text_files import numbered_lines

_LINE_KEYS = ("image", "caption", "captions", "language", "concept")


class ImageFolder(CaptionedImages):
    """A folder of images with a JSON Lines file of captions.

    A line is ``{"image": "cat.jpg", "captions": ["a cat", ...]}``, or ``"caption": "a cat"`` for a single caption. The
    keys ``"language"`` (of the line's captions) and ``"concept"`` (positives key) are optional; other keys are ignored.
    Captions of several kinds are an object: ``"captions": {"title": "a cat", "synthetic": ["a cat on a mat"]}``. The
    captions of several lines about one image are joined. ``"image": null`` is text without an image. The example's
    id is the image's path inside the folder, or ``line <number>`` for text only.
    """

    def __init__(self, folder: str | Path, captions: str = "captions.jsonl", outside: bool = False) -> None:
        """Reads the captions file and checks that every image is there. UserError names the line that is wrong.

        ``outside`` allows it to name images that do not lie in ``folder`` (``../a.png``, ``/home/a.png``): a captions
        file from elsewhere should not choose among the files of this machine.
        """
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"{root}: there is no such folder; give the one that holds {captions}")
        path = root / captions
        if not path.is_file():
            raise UserError(
                f'{path}: there is no such file; write one line {{"image": ..., "captions": [...]}} an image'
            )
        rows = _rows(path, outside)
        first = next(rows, None)
        if first is None:
            raise UserError(f"{path}: has no line; write one for each image")
        try:
            table, lines = CaptionTable.of_rows(chain([first], rows))
        except TwoConcepts as two:
            raise UserError(
                f"{path}:{two.line}: gives {two.image} the concept {two.concept!r}, an earlier line "
                f"{two.first_concept!r}; choose one"
            ) from None
        _check_images(root, table, lines, captions)
        super().__init__(root, table)


def _check_images(folder: Path, table: CaptionTable, lines: np.ndarray, captions: str) -> None:
    """Raises UserError unless all images are there. ``lines`` are those that name them first."""
    begin, files = os.path.join(folder, ""), ExistingFiles()
    named, missing, first = 0, 0, None
    for index, name in table.images():
        named += 1
        # False also for what cannot be the name of a file: one that is too long (a caption, say), or with a zero byte.
        if not files.has(name if name.startswith(os.sep) else begin + name):
            missing += 1
            first = first or (name, int(lines[index]))
    if first is not None:
        name, line = first
        raise UserError(
            f"{cut(f'{folder / name}', 200)}: there is no such file ({missing} of {named} images are missing), first "
            f"in line {line} of {Path(captions).name}; add them or remove their lines"
        )


def _rows(path: Path, outside: bool) -> Iterator[Row]:
    """What the lines of a captions file say. Raises UserError."""
    # Keys that need no second look: a million lines have the same few.
    fine, file = set(_LINE_KEYS), str(path)
    for number, line in numbered_lines(path):
        if line and not line.isspace():
            yield _row(line, f"{file}:{number}", number, outside, fine)


def _row(line: str, where: str, number: int, outside: bool, fine: set[str]) -> Row:
    """One line; ``where`` is ``file:line``, for messages. Raises UserError."""
    fields = json_of_line(line, where)
    if not isinstance(fields, dict):
        raise UserError(f'{where}: must be an object such as {{"image": "a.jpg", "captions": ["..."]}}')
    # Keys that we do not know are ignored, but one that is nearly ours is a misspelling.
    for key in () if fields.keys() <= fine else fields.keys() - fine:
        close = difflib.get_close_matches(key, _LINE_KEYS, n=1, cutoff=0.8)
        if close:
            raise UserError(f"{where}: has the key {key!r}; did you mean {close[0]!r}?")
        fine.add(key)
    if "image" not in fields or ("caption" in fields) == ("captions" in fields):
        raise UserError(f"{where}: needs 'image' and either 'captions' or 'caption', but has {sorted(fields)}")
    given = [fields["caption"]] if "caption" in fields else fields["captions"]
    # What most lines are is seen at once.
    one = type(given) is list and len(given) == 1 and type(given[0]) is str
    texts, kinds = (given, None) if one else by_kind(given)
    if texts is None:
        raise UserError(f"{where}: 'caption' must be a string and 'captions' a list of strings, not {given!r}")
    image, language, concept = fields["image"], fields.get("language"), fields.get("concept")
    for key, value in (("image", image), ("language", language), ("concept", concept)):
        if value is not None and not isinstance(value, str):
            raise UserError(f"{where}: {key!r} must be a string, not {value!r}")
    check_inside(image, where, outside)
    if image is not None and not image.isascii() and whole_characters(image) != image:
        raise UserError(f"{where}: the image's name {image!r} has half a character in it; rename the file")
    return Row(number, image, texts, concept, language, kinds if isinstance(given, dict) else None)
