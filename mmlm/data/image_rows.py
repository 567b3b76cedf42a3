"""Rows of images and captions in the Hugging Face convention, whatever the files are that hold them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data import parquet_files
from mmlm.data.groups import Groups, grouped
from mmlm.data.images import decode_image, read_encoded
from mmlm.data.inside import check_inside
from mmlm.data.parquet_files import check_types, repeated_images, told_apart
from mmlm.data.recent import Recent
from mmlm.data.table_parts import TableParts, has_path

KEPT_IMAGES = 2**28
"""Bytes of the image column that each process keeps of the parts it has read most recently; one part at least."""
KEPT_TEXTS = 2**26
"""The same for the other columns."""
_PARTS = 4096
"""Parts of each that are kept at most."""
_LEADS_OUT = r"(^|/)\.\.(/|$)|^/"
"""What the names of images that may lie outside of their folder have."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by their names."""

    image: str
    caption: str
    concept: str | None
    id: str | None
    language: str | None

    @property
    def texts(self) -> list[str]:
        """All but that of images."""
        named = (self.caption, self.concept, self.id, self.language)
        return list(dict.fromkeys(column for column in named if column is not None))

    @property
    def all(self) -> list[str]:
        """All of them, none twice."""
        return list(dict.fromkeys([self.image, *self.texts]))


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
            check_types(parts.paths[number], schema, columns.image, columns.caption, columns.language)
        self._names = told_apart(parts.paths)
        self._ends = np.cumsum(parts.sizes)  # int64[parts]: the row behind the last of each
        files = np.searchsorted(parts.files, np.arange(len(parts.paths)))  # the first part of each file
        self._file_starts = np.concatenate([[0], self._ends])[files]  # int64[files]: the first row of each
        if not len(self._ends) or not self._ends[-1]:
            raise UserError(f"{parts.paths[0]}: has no rows")
        if not outside:
            self._check_paths()
        self._groups = None if columns.id is None else self._joined(columns.id)
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
        rows = self._rows_of(index)
        try:
            id, captions, concept = self._texts_of(rows)
        except UserError as error:
            raise CorruptImage(self._place_of(rows[0]), str(error)) from error
        data, name = self._image(rows[0], id)
        return Example(id, None if data is None else decode_image(data, name), captions, concept)

    def encoded(self, index: int) -> bytes | None:
        """See ``mmlm.data.sources.GivesBytes``."""
        row = self._rows_of(index)[0]
        return self._image(row, self._place_of(row))[0]

    def captions(self) -> Iterator[Caption]:
        """See ``Source``. Raises UserError for a file that cannot be read any more."""
        for index in range(len(self)):
            for row in self._rows_of(index):
                yield from self._captions_of(row)

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``mmlm.data.sources.ListsTexts``. Raises UserError for a file that cannot be read any more."""
        there: tuple[int, np.ndarray | None] = (-1, None)
        for index in range(len(self)):
            rows = self._rows_of(index)
            part, place = self._part_of(rows[0])
            if there[0] != part:
                there = (part, self._images_there(part))
            id, captions, concept = self._texts_of(rows)
            yield ExampleTexts(id, captions, concept, there[1] is None or bool(there[1][place]))

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
        return self._place_of(rows[0]) if id is None else str(id), captions, None if concept is None else str(concept)

    def _captions_of(self, row: int) -> Iterator[Caption]:
        part, place = self._part_of(row)
        table = self._kept_texts(part)
        value = table[self._columns.caption][place].as_py()
        texts = value if isinstance(value, list) else [value]
        named = None if self._columns.language is None else table[self._columns.language][place].as_py()
        each = named if isinstance(named, list) and len(named) == len(texts) else [named] * len(texts)
        for text, language in zip(texts, each, strict=True):
            if text is not None:
                yield Caption(text, language if isinstance(language, str) else self._language)

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

    def _joined(self, id_column: str) -> Groups | None:
        """The rows of each id; None if each row has its own. Raises UserError."""
        columns = [self._parts.read(part, [id_column])[id_column] for part in range(len(self._ends))]
        texts = pa.chunked_array([chunk for column in columns for chunk in _as_texts(column).chunks])
        codes = np.concatenate([np.zeros(0, np.int64), *_codes(texts)])
        # A row without an id is an example of its own.
        alone = np.flatnonzero(codes < 0)
        codes[alone] = len(codes) + alone
        groups = grouped(codes)
        if len(groups) == len(codes):
            return None
        self._check_images(groups)
        self._check_concepts(groups)
        return groups

    def _check_images(self, groups: Groups) -> None:
        """Raises UserError if two rows of one id have different images; of large tables the first are compared."""
        firsts = np.empty(len(groups.rows), dtype=np.int64)
        firsts[groups.rows] = groups.firsts_of_rows()
        several = np.bincount(firsts, minlength=len(firsts))[firsts] > 1
        known: dict[int, bytes] = {}
        compared = 0
        for part, size in enumerate(self._parts.sizes.tolist()):
            begin = int(self._ends[part]) - size
            rows = begin + np.flatnonzero(several[begin : begin + size])
            if len(rows) == 0:
                continue
            column = self._parts.read(part, [self._columns.image])[self._columns.image]
            for row in rows.tolist():
                cell = column[row - begin].as_py()
                data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                compared += 0 if data is None else len(data)
                if compared > parquet_files.MOST_COMPARED:
                    return
                digest = hashlib.blake2b(repr((data is None, name)).encode(), digest_size=16)
                digest.update(data or b"")
                first = int(firsts[row])
                if known.setdefault(first, digest.digest()) != digest.digest():
                    raise UserError(
                        f"id_column: {self._both(first, row)} and different images; name a column that "
                        "tells images apart"
                    )

    def _check_concepts(self, groups: Groups) -> None:
        """Raises UserError if two rows of one id have different concepts."""
        concept = self._columns.concept
        if concept is None:
            return
        columns = [self._parts.read(part, [concept])[concept] for part in range(len(self._ends))]
        texts = pa.chunked_array([chunk for column in columns for chunk in _as_texts(column).chunks])
        codes = np.concatenate(_codes(texts))
        firsts = groups.firsts_of_rows()
        other = np.flatnonzero(codes[groups.rows] != codes[firsts])
        if len(other):
            both = self._both(int(firsts[other[0]]), int(groups.rows[other[0]]))
            raise UserError(f"concept_column: {both} and different concepts; choose one")

    def _both(self, one: int, other: int) -> str:
        """Two rows of one id, for a message."""
        places = (self._place_of(row).rpartition("/") for row in (one, other))
        where = " and ".join(f"row {row} of {name}" for name, _, row in places)
        part, place = self._part_of(one)
        id = self._parts.read(part, [str(self._columns.id)])[self._columns.id][place].as_py()
        return f"{where} have the id {str(id)!r}"


def _read(parts: TableParts, columns: Sequence[str], part: int) -> pa.Table:
    return parts.read(part, columns)


def _bytes_of(table: pa.Table) -> int:
    return table.nbytes


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of ids or of concepts as they are written."""
    if pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_string())
    return pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.large_string())])


def _codes(texts: pa.ChunkedArray) -> list[np.ndarray]:
    """int64[rows], chunk by chunk: equal texts have equal numbers, in the order of the first of each; -1 for null."""
    encoded = texts.combine_chunks().dictionary_encode()
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    return [chunk.indices.fill_null(-1).to_numpy().astype(np.int64) for chunk in chunks]
