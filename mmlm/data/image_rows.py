"""Rows of images and captions in the Hugging Face convention, whatever the files are that hold them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.caption_table import LISTED_AT_ONCE
from mmlm.data.images import decode_image, read_encoded
from mmlm.data.inside import check_inside
from mmlm.data.parquet_files import check_types, repeated_images, told_apart
from mmlm.data.recent import Recent
from mmlm.data.same_ids import SameIds
from mmlm.data.table_parts import Columns, TableParts, has_path

KEPT_IMAGES = 2**28
"""Bytes of the image column that each process keeps of the parts it has read most recently; one part at least."""
KEPT_TEXTS = 2**26
"""The same for the other columns."""
_PARTS = 4096
"""Parts of each that are kept at most."""
_LEADS_OUT = r"(^|/)\.\.(/|$)|^/"
"""What the names of images that may lie outside of their folder have."""

_Cell = str | list[str | None] | None
"""A text, or one for each caption of a row."""


class ImageRows:
    """The examples of a table that is read a part at a time; see ``ParquetTable`` for what the columns mean.

    Parts are the shards of an order by windows. A part is read when one of its rows is asked for, and kept until others
    have taken its room. Only the ids are gone through at the start, if a column has them: which rows are one example
    has to be known.
    """

    def __init__(self, parts: TableParts, columns: Columns, language: str | None, outside: bool) -> None:
        """Raises UserError: a column of another type, an image outside of its folder, rows of one id that disagree."""
        self._parts, self._columns, self._language, self._outside = parts, columns, language, outside
        for number in {id(schema): number for number, schema in enumerate(parts.schemas)}.values():
            schema = parts.schemas[number]
            for caption in columns.captions:
                check_types(parts.paths[number], schema, columns.image, caption, columns.language, columns.kind)
        self._names = told_apart(parts.paths)
        self._ends = np.cumsum(parts.sizes)  # int64[parts]: the row behind the last of each
        files = np.searchsorted(parts.files, np.arange(len(parts.paths)))  # the first part of each file
        self._file_starts = np.concatenate([[0], self._ends])[files]  # int64[files]: the first row of each
        if not len(self._ends) or not self._ends[-1]:
            raise UserError(f"{parts.paths[0]}: has no rows")
        if not outside:
            self._check_paths()
        self._groups = None if columns.id is None else SameIds(parts, columns, self._place_of).joined(columns.id)
        self._begin()

    def _begin(self) -> None:
        parts, columns = self._parts, self._columns
        images, texts = partial(_read, parts, (columns.image,)), partial(_read, parts, tuple(columns.texts))
        self._kept_images: Callable[[int], pa.Table] = images
        self._kept_texts: Callable[[int], pa.Table] = texts
        if not parts.mapped:
            self._kept_images = Recent(images, _bytes_of, _PARTS, KEPT_IMAGES)
            self._kept_texts = Recent(texts, _bytes_of, _PARTS, KEPT_TEXTS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_kept_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        """The number of examples of all files."""
        return int(self._ends[-1]) if self._groups is None else len(self._groups)

    def shard_sizes(self) -> Sequence[int]:
        """See ``mmlm.data.order.Sharded``: the examples whose first rows lie in each part."""
        if self._groups is None:
            return self._parts.sizes.tolist()
        parts = np.searchsorted(self._ends, self._groups.first_rows(), side="right")
        return np.bincount(parts, minlength=len(self._ends)).tolist()

    def __getitem__(self, index: int) -> Example:
        """See ``Source``. Raises IndexError beyond the last example."""
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``mmlm.data.sources.ReadsReduced``."""
        rows = self._rows_of(index)
        try:
            id, captions, concept = self._texts_of(rows)
        except UserError as error:
            raise CorruptImage(self._place_of(rows[0]), str(error)) from error
        data, name = self._image(rows[0], id)
        return Example(id, None if data is None else decode_image(data, name, at_least), captions, concept)

    def encoded(self, index: int) -> bytes | None:
        """See ``mmlm.data.sources.GivesBytes``."""
        row = self._rows_of(index)[0]
        return self._image(row, self._place_of(row))[0]

    def captions(self) -> Iterator[Caption]:
        """See ``Source``. Raises UserError for a file that cannot be read any more."""
        if self._groups is None:
            for part in range(len(self._ends)):
                for _, captions, _ in self._listed(part):
                    yield from captions
            return
        for index in range(len(self)):
            for row in self._rows_of(index):
                yield from self._captions_of(row)

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``mmlm.data.sources.ListsTexts``. Raises UserError for a file that cannot be read any more."""
        if self._groups is None:
            for part, size in enumerate(self._parts.sizes.tolist()):
                there, file = self._images_there(part), int(self._parts.files[part])
                name, first = self._names[file], int(self._ends[part] - self._file_starts[file]) - size
                for place, (id, captions, concept) in enumerate(self._listed(part)):
                    has_image = there is None or bool(there[place])
                    yield ExampleTexts(f"{name}/{first + place}" if id is None else id, captions, concept, has_image)
            return
        read: tuple[int, np.ndarray | None] = (-1, None)
        for index in range(len(self)):
            rows = self._rows_of(index)
            part, place = self._part_of(rows[0])
            if read[0] != part:
                read = (part, self._images_there(part))
            id, captions, concept = self._texts_of(rows)
            yield ExampleTexts(id, captions, concept, read[1] is None or bool(read[1][place]))

    def _listed(self, part: int) -> Iterator[tuple[str | None, tuple[Caption, ...], str | None]]:
        """The id in the table, the captions and the concept of each row of a part. Raises UserError."""
        table, columns = self._kept_texts(part), self._columns
        for start in range(0, len(table), LISTED_AT_ONCE):
            some = table.slice(start, LISTED_AT_ONCE)
            ids, concepts, languages, kinds = (
                [None] * len(some) if name is None else some[name].to_pylist()
                for name in (columns.id, columns.concept, columns.language, columns.kind)
            )
            cells = zip(*(some[name].to_pylist() for name in columns.captions), strict=True)
            for id, values, concept, named, sorts in zip(ids, cells, concepts, languages, kinds, strict=True):
                yield _text(id), tuple(self._tagged(values, named, sorts)), _text(concept)

    def remarks(self) -> Iterator[str]:
        """Rows that hold the same image, though nothing says that they belong together; see ``HasRemarks``."""
        if self._columns.id is not None:
            return
        image = self._columns.image
        again = repeated_images(self._parts.read(part, [image])[image] for part in range(len(self._ends)))
        if again:
            yield (
                f"{again:,} of {len(self):,} rows hold an image that an earlier row has, and count as images of their "
                "own; if rows of one image belong together, name a column that tells images apart: id_column"
            )

    def _rows_of(self, index: int) -> Sequence[int]:
        """The rows of an example. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is none of the {len(self)} examples")
        return [index] if self._groups is None else self._groups.of(index).tolist()

    def _part_of(self, row: int) -> tuple[int, int]:
        """The part that a row lies in, and its place there."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return part, row - int(self._ends[part] - self._parts.sizes[part])

    def _place_of(self, row: int) -> str:
        """The file of a row and its number there: its id, if no column has one."""
        file = int(self._parts.files[self._part_of(row)[0]])
        return f"{self._names[file]}/{row - int(self._file_starts[file])}"

    def _texts_of(self, rows: Sequence[int]) -> tuple[str, tuple[Caption, ...], str | None]:
        """The id, captions and concept of an example. Raises UserError."""
        part, place = self._part_of(rows[0])
        table = self._kept_texts(part)
        id = None if self._columns.id is None else table[self._columns.id][place].as_py()
        concept = None if self._columns.concept is None else table[self._columns.concept][place].as_py()
        captions = tuple(caption for row in rows for caption in self._captions_of(row))
        return self._place_of(rows[0]) if id is None else str(id), captions, _text(concept)

    def _captions_of(self, row: int) -> Iterator[Caption]:
        part, place = self._part_of(row)
        table = self._kept_texts(part)
        named, kinds = (
            None if name is None else table[name][place].as_py()
            for name in (self._columns.language, self._columns.kind)
        )
        return self._tagged([table[name][place].as_py() for name in self._columns.captions], named, kinds)

    def _tagged(self, cells: Sequence[_Cell], named: _Cell, kinds: _Cell) -> Iterator[Caption]:
        """The captions of the cells of a row, with the languages and the kinds of two other cells."""
        for column, value in zip(self._columns.kinds, cells, strict=True):
            texts = value if isinstance(value, list) else [value]
            for text, language, kind in zip(texts, _each(named, texts), _each(kinds, texts), strict=True):
                if text is not None:
                    yield Caption(
                        text,
                        language if isinstance(language, str) else self._language,
                        kind if isinstance(kind, str) else column,
                    )

    def _image(self, row: int, id: str) -> tuple[bytes | None, str]:
        """The encoded image of a row and its name for messages. Raises CorruptImage."""
        part, place = self._part_of(row)
        path = self._parts.paths[int(self._parts.files[part])]
        try:
            cell = self._kept_images(part)[self._columns.image][place].as_py()
        except UserError as error:
            raise CorruptImage(id, str(error)) from error
        if cell is None or isinstance(cell, bytes):
            return cell, id
        data, name = cell["bytes"], cell.get("path")
        if data is None and name is None:
            raise CorruptImage(id, "the row has neither bytes nor a path")
        if data is not None:
            return data, id
        check_inside(name, str(path), self._outside)
        return read_encoded(path.parent / name), str(path.parent / name)

    def _images_there(self, part: int) -> np.ndarray | None:
        """bool[rows of the part]: which rows have an image, if they have a path only too; None if all have."""
        image = self._columns.image
        kind = self._parts.schemas[int(self._parts.files[part])].field(image).type
        if self._parts.rows_without_bytes(part, image) == 0:
            return None
        column = (
            self._parts.read_without_bytes(part, image) if pa.types.is_struct(kind) else self._kept_images(part)[image]
        )
        return column.is_valid().to_numpy()

    def _check_paths(self) -> None:
        """Raises UserError for an image that lies outside of the folder of its file.

        Parts in which some images have bytes are left out: their names may be anything, and those that count are
        checked when they are read.
        """
        image = self._columns.image
        for part, size in enumerate(self._parts.sizes.tolist()):
            file = int(self._parts.files[part])
            if has_path(self._parts.schemas[file].field(image).type):
                if self._parts.rows_without_bytes(part, image) != size:
                    continue
                names = pc.struct_field(self._parts.read_without_bytes(part, image), "path")
                if pa.types.is_null(names.type):
                    continue
                for name in names.filter(pc.match_substring_regex(names, _LEADS_OUT)).to_pylist():
                    check_inside(name, str(self._parts.paths[file]), outside=False)


def _each(cell: _Cell, texts: Sequence[object]) -> Sequence[object]:
    """What a cell says of each of some texts: a list of as many does so by itself, anything else is for all of them."""
    return cell if isinstance(cell, list) and len(cell) == len(texts) else [cell] * len(texts)


def _read(parts: TableParts, columns: Sequence[str], part: int) -> pa.Table:
    return parts.read(part, columns)


def _text(value: object) -> str | None:
    """An id or a concept as it is written."""
    return None if value is None else str(value)


def _bytes_of(table: pa.Table) -> int:
    return table.nbytes
