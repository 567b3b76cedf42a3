"""Sources of examples, one class per format. A source is map-style and lists its captions without reading an image."""

import difflib
import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.core.wording import cut, first_line
from mmlm.data.images import decode_image, read_image


class Source(Protocol):
    """A map-style data set. It is pickled once for each data worker."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at ``index`` (0 to len - 1). Raises CorruptImage if its image cannot be decoded."""
        ...

    def captions(self) -> Iterator[Caption]:
        """Every caption of every example, in order, without decoding an image."""
        ...


@runtime_checkable
class ListsTexts(Protocol):
    """A source that lists its examples without decoding an image, as all of ours do.

    What evaluators need of a split is checked by this list before training.
    """

    def texts(self) -> Iterator[ExampleTexts]:
        """Every example without its pixels, in order: those with an image that cannot be decoded too."""
        ...


def texts_of(source: Source) -> Iterator[ExampleTexts]:
    """Every example of ``source`` without its pixels, in order.

    A source that cannot list them is read once; images that cannot be decoded are then passed over.
    """
    if isinstance(source, ListsTexts):
        yield from source.texts()
        return
    for index in range(len(source)):
        example = read_example(source, index)
        if isinstance(example, Example):
            yield ExampleTexts(example.id, example.captions, example.concept, example.image is not None)


def read_example(source: Source, index: int) -> Example | CorruptImage:
    """The example, or the error as a value: a corrupt image is dropped from its batch and named in it."""
    try:
        return source[index]
    except CorruptImage as error:
        return error


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
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
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


def _lies_outside(name: str) -> bool:
    """Whether a path, seen from a folder, leads out of it. It is told by the name: a link may lead anywhere."""
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def _check_inside(name: str | None, where: str, outside: bool) -> None:
    """UserError for an image outside of the folder of its captions, unless ``outside`` allows it."""
    if name is not None and not outside and _lies_outside(name):
        raise UserError(
            f"{where}: the image {name!r} lies outside of the folder; move it there, or allow it: data....outside=true"
        )


def _add_line(entries: dict[str, _Entry], line: str, where: str, number: int, outside: bool) -> None:
    """Adds one line of a captions file to ``entries`` (by example id). ``where`` is ``file:line``, for messages."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); write one JSON object a line") from None
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
    _check_inside(image, where, outside)
    entry = entries.setdefault(f"line {number}" if image is None else image, _Entry(image, number, concept=concept))
    if entry.concept != concept:
        raise UserError(
            f"{where}: gives {image} the concept {concept!r}, an earlier line {entry.concept!r}; choose one"
        )
    entry.captions += [Caption(text, fields.get("language")) for text in texts]


class ParquetTable:
    """Parquet files in the Hugging Face image convention: an image column of struct<bytes, path> (or plain binary).

    The caption column holds strings or lists of strings. An image without bytes is read from its ``path``, relative to
    the folder of its Parquet file. A row with a null image is text only; a null caption is no caption. The columns that
    are used, with the encoded images, are held in memory: a larger data set has to be converted into shards first.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        image_column: str = "image",
        caption_column: str = "caption",
        concept_column: str | None = None,
        id_column: str | None = None,
        language: str | None = None,
        outside: bool = False,
    ) -> None:
        """Reads the columns. ``files`` is one or several paths or glob patterns; ``language`` is that of all captions.

        Without ``id_column`` an example's id is the name of its file and its row: ``train.parquet/17``. ``outside``
        allows images by paths that lead out of the folder of the file. Raises UserError for a missing or unreadable
        file, a missing column, a column of another type, such a path that is not allowed, or no rows.
        """
        self._arguments = (files, image_column, caption_column, concept_column, id_column, language, outside)
        self._language = language
        paths = _expand(files)
        wanted = (image_column, caption_column, concept_column, id_column)
        columns = list(dict.fromkeys(column for column in wanted if column is not None))
        tables = [_read_columns(path, columns) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            _check_types(path, table, image_column, caption_column)
            _check_paths(path, table[image_column], outside)
        self._rows = [(number, row) for number, table in enumerate(tables) for row in range(len(table))]
        if not self._rows:
            raise UserError(f"{paths[0]}: has no rows")
        self._paths = paths
        self._images = [table[image_column] for table in tables]
        self._captions = [table[caption_column] for table in tables]
        self._concepts = None if concept_column is None else [table[concept_column] for table in tables]
        self._ids = None if id_column is None else [table[id_column] for table in tables]

    def __reduce__(self) -> tuple[type["ParquetTable"], tuple]:
        """Pickles the arguments only: reading the files again is faster than piping the columns to a worker."""
        return ParquetTable, self._arguments

    def __len__(self) -> int:
        """The number of rows of all files."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """See :class:`Source`."""
        number, row = self._rows[index]
        id = self._id(number, row)
        image = self._images[number][row].as_py()
        return Example(
            id=id,
            image=None if image is None else _decode_cell(image, id, self._paths[number].parent),
            captions=tuple(self._row_captions(self._captions[number][row].as_py())),
            concept=self._concept(number, row),
        )

    def captions(self) -> Iterator[Caption]:
        """See :class:`Source`."""
        for column in self._captions:
            for value in column.to_pylist():
                yield from self._row_captions(value)

    def texts(self) -> Iterator[ExampleTexts]:
        """See :class:`ListsTexts`."""
        for number, row in self._rows:
            captions = tuple(self._row_captions(self._captions[number][row].as_py()))
            yield ExampleTexts(
                self._id(number, row), captions, self._concept(number, row), self._images[number][row].is_valid
            )

    def _id(self, number: int, row: int) -> str:
        return f"{self._paths[number].name}/{row}" if self._ids is None else str(self._ids[number][row].as_py())

    def _concept(self, number: int, row: int) -> str | None:
        concept = None if self._concepts is None else self._concepts[number][row].as_py()
        return None if concept is None else str(concept)

    def _row_captions(self, value: str | list[str | None] | None) -> Iterator[Caption]:
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text is not None:
                yield Caption(text, self._language)


def _decode_cell(cell: bytes | dict, id: str, folder: Path) -> Tensor:
    """uint8[3, H, W] of one cell of the image column: encoded bytes, or a struct of bytes and path."""
    data, path = (cell, None) if isinstance(cell, bytes) else (cell.get("bytes"), cell.get("path"))
    if data is not None:
        return decode_image(data, id)
    if path is not None:
        return read_image(folder / path)
    raise CorruptImage(id, "the row has neither bytes nor a path")


def _expand(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of all paths and patterns, those of a pattern sorted: the order decides the examples' numbers."""
    patterns = [files] if isinstance(files, str | Path) else list(files)
    if not patterns:
        raise ArgumentError("files: [] names no Parquet file; give at least one path or pattern")
    paths: list[Path] = []
    for pattern in patterns:
        # A file whose name has a bracket or a star is not a pattern.
        found = [str(pattern)] if Path(pattern).is_file() else sorted(glob.glob(str(pattern), recursive=True))
        if not found:
            raise UserError(f"{pattern}: there is no such Parquet file")
        paths += [Path(name) for name in found]
    return paths


def _read_columns(path: Path, columns: list[str]) -> pa.Table:
    """The columns of a file. UserError if one is missing or the file cannot be read."""
    try:
        present = pq.read_schema(path).names
        missing = [column for column in columns if column not in present]
        if missing:
            raise UserError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(present)}")
        # partitioning=None: a folder named like ``split=train`` must not become a column.
        return pq.read_table(path, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def _check_paths(path: Path, images: pa.ChunkedArray, outside: bool) -> None:
    """Raises UserError for an image, of those without bytes, that lies outside of the folder of its table."""
    if not pa.types.is_struct(images.type) or images.type.get_field_index("path") < 0:
        return
    without_bytes = pc.is_null(pc.struct_field(images, "bytes"))
    for name in pc.struct_field(images, "path").filter(without_bytes).unique().to_pylist():
        _check_inside(name, str(path), outside)


def _check_types(path: Path, table: pa.Table, image_column: str, caption_column: str) -> None:
    """Raises UserError unless the columns hold images and captions."""
    image = table.schema.field(image_column).type
    is_bytes = pa.types.is_binary(image) or pa.types.is_large_binary(image)
    is_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not is_bytes and not is_struct:
        raise UserError(f"{path}: column {image_column!r} is {image}, but an image is struct<bytes, path> or binary")
    caption = table.schema.field(caption_column).type
    if pa.types.is_list(caption) or pa.types.is_large_list(caption):
        caption = caption.value_type
    if not pa.types.is_string(caption) and not pa.types.is_large_string(caption):
        raise UserError(f"{path}: column {caption_column!r} is {caption}, but captions are strings or lists of strings")
