"""The files of published tests of compositionality, read as they are published: images with a true and a false caption.

- Winoground (arXiv:2204.03162): ``examples.jsonl``, one object a line with ``id``, ``image_0``, ``image_1``,
  ``caption_0``, ``caption_1`` and ``collapsed_tag``; an image's name comes without its ending.
- SugarCrepe (arXiv:2306.14610): ``swap_att.json`` and its like, an object of objects with ``filename``, ``caption`` and
  ``negative_caption``.
- ARO (arXiv:2210.01936): ``visual_genome_relation.json`` and ``visual_genome_attribution.json``, a list of objects with
  ``image_path``, ``true_caption``, ``false_caption``, and ``bbox_x``, ``bbox_y``, ``bbox_w``, ``bbox_h``: the part of
  the image that is shown.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.wording import shown
from mmlm.data.contrasts import Contrast, Contrasts
from mmlm.data.images import read_image
from mmlm.data.inside import lies_outside
from mmlm.data.text_files import numbered_lines, read_text

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""What is tried behind the name of an image that comes without an ending."""


@dataclass(frozen=True)
class _Row:
    """An image of a file, or a part of it, with its contrast."""

    id: str
    image: str
    contrast: Contrast
    box: tuple[int, int, int, int] | None = None
    """Left, upper, width and height in pixels; None is all of the image."""


class ContrastFiles:
    """Images with a true caption each, and a false one that only ``contrasts`` tells: a split to evaluate on.

    Args:
        form: whose files they are.
        files: the annotations; a file's name without its ending is the kind of its contrasts, except for Winoground,
            where it is the ``collapsed_tag``.
        images: the folder that the names of the images begin in.
        language: of the captions.

    Raises:
        UserError: a missing or broken file, by its name and row; an image outside of ``images``; no row at all.
    """

    def __init__(
        self,
        form: Literal["winoground", "sugarcrepe", "aro"],
        files: Sequence[str],
        images: str | Path,
        language: str | None = None,
    ) -> None:
        self._folder, self._language = Path(images), language
        if not self._folder.is_dir():
            raise UserError(f"{self._folder}: there is no such folder; give the one with the images")
        read = {"winoground": _winoground, "sugarcrepe": _sugarcrepe, "aro": _aro}[form]
        self._rows = [row for file in files for row in read(Path(file))]
        if not self._rows:
            raise UserError(f"{', '.join(files) or 'files: []'}: has no row; give the annotations of {form}")
        for row in self._rows:
            if lies_outside(row.image):
                raise UserError(f"{row.id}: the image {shown(row.image)} lies outside of {self._folder}")

    def __len__(self) -> int:
        """Number of images; one that has several contrasts counts for each."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        row = self._rows[index]
        image = read_image(self._path(row.image))
        return Example(row.id, image if row.box is None else _part(image, row), self._captions(row))

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (caption for row in self._rows for caption in self._captions(row))

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        return (ExampleTexts(row.id, self._captions(row), None, True) for row in self._rows)

    def contrasts(self) -> Contrasts:
        """See ``HasContrasts``."""
        return {row.id: (row.contrast,) for row in self._rows}

    def attributes(self) -> Mapping[str, Mapping[str, str]]:
        """What is false of each image, by its id."""
        return {"kind": {row.id: row.contrast.kind for row in self._rows}}

    def _captions(self, row: _Row) -> tuple[Caption, ...]:
        return (Caption(row.contrast.true, self._language),)

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if path.suffix.lower() in ENDINGS:
            return path
        # A name of Winoground; with none of the endings the first is named in the message.
        tried = [path.with_name(path.name + ending) for ending in ENDINGS]
        return next((one for one in tried if one.is_file()), tried[0])


def _part(image: Tensor, row: _Row) -> Tensor:
    """The part of uint8[3, H, W] that is shown. Raises CorruptImage if it is none."""
    assert row.box is not None, "the caller has a part to cut out"
    left, upper, width, height = row.box
    part = image[:, max(0, upper) : max(0, upper + height), max(0, left) : max(0, left + width)]
    if not part.numel():
        raise CorruptImage(row.id, f"the box {row.box} holds no pixel of {tuple(image.shape[1:])}")
    return part.contiguous()


def _winoground(file: Path) -> Iterator[_Row]:
    """Two rows for each line: each image with its own caption, and the other's as the false one."""
    _check_there(file)
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        entry = _parsed(line, where)
        texts = [_text(entry, f"caption_{side}", where) for side in (0, 1)]
        key = str(entry.get("id", number)) if isinstance(entry, Mapping) else str(number)
        kind = str(entry.get("collapsed_tag") or "all").replace("/", "_").replace(" ", "_").lower()
        for side in (0, 1):
            contrast = Contrast(kind, texts[side], texts[1 - side], f"{file.stem}/{key}")
            yield _Row(f"{file.stem}/{key}/{side}", _text(entry, f"image_{side}", where), contrast)


def _sugarcrepe(file: Path) -> Iterator[_Row]:
    for key, entry, where in _entries(file):
        contrast = Contrast(file.stem, _text(entry, "caption", where), _text(entry, "negative_caption", where))
        yield _Row(f"{file.stem}/{key}", _text(entry, "filename", where), contrast)


def _aro(file: Path) -> Iterator[_Row]:
    for key, entry, where in _entries(file):
        contrast = Contrast(file.stem, _text(entry, "true_caption", where), _text(entry, "false_caption", where))
        given = [entry.get(f"bbox_{side}") for side in ("x", "y", "w", "h")]
        box = None
        if any(side is not None for side in given):
            numbers = [int(side) for side in given if isinstance(side, int | float)]
            if len(numbers) < len(given):
                raise UserError(f"{where}: bbox_x, bbox_y, bbox_w and bbox_h must be four numbers, not {given}")
            box = (numbers[0], numbers[1], numbers[2], numbers[3])
        yield _Row(f"{file.stem}/{key}", _text(entry, "image_path", where), contrast, box)


def _entries(file: Path) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Key, object and place for messages, of a JSON list or object of objects."""
    _check_there(file)
    content = _parsed(read_text(file), str(file))
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, entry in items:
        where = f"{file}: entry {key}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where}: must be an object, not {shown(str(entry))}")
        yield str(key), entry, where


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; give the annotations as they are published")


def _parsed(text: str, where: str) -> Any:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error})") from None
    if not isinstance(content, Mapping | list):
        raise UserError(f"{where}: must be an object or a list, not {shown(str(content))}")
    return content


def _text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: '{key}' must be a text, not {shown(str(value))}")
    return value
