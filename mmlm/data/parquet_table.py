"""Parquet files in the Hugging Face image convention."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.images import decode_image, read_encoded
from mmlm.data.parquet_files import check_paths, check_types, expand, read_columns, repeated_images, told_apart


class ParquetTable:
    """Parquet files in the Hugging Face image convention: an image column of struct<bytes, path> (or plain binary).

    The caption column holds strings or lists of strings. An image without bytes is read from its ``path``, relative to
    the folder of its Parquet file. A row with a null image is text only; a null caption is no caption. Rows of one id
    are one example, at the place of the first of them, with the captions of all: a table may give each caption of an
    image a row. The columns that are used, with the encoded images, are held in memory: a larger data set has to be
    converted into shards first.
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
        language_column: str | None = None,
    ) -> None:
        """Reads the columns. ``files`` is one or several paths or glob patterns; ``language`` is that of captions that
        name none in ``language_column``, which holds a string for all captions of a row or a list of one for each.

        Without ``id_column``, or where it is null, an example's id is the name of its file and its row:
        ``train.parquet/17``; where two files have one name, their paths are told apart: ``2023/train.parquet/17``.
        ``outside`` allows images by paths that lead out of the folder of the file. Raises UserError for a missing or
        unreadable file, a missing column, a column of another type, such a path that is not allowed, two images or
        two concepts of one id, or no rows.
        """
        self._arguments = (
            *(files, image_column, caption_column, concept_column, id_column),
            *(language, outside, language_column),
        )
        self._language = language
        paths = expand(files)
        wanted = (image_column, caption_column, concept_column, id_column, language_column)
        columns = list(dict.fromkeys(column for column in wanted if column is not None))
        tables = [read_columns(path, columns) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            check_types(path, table, image_column, caption_column, language_column)
            check_paths(path, table[image_column], outside)
        self._paths = paths
        self._names = told_apart(paths)
        self._images = [table[image_column] for table in tables]
        self._captions = [table[caption_column] for table in tables]
        self._languages = None if language_column is None else [table[language_column] for table in tables]
        self._concepts = None if concept_column is None else [table[concept_column] for table in tables]
        self._ids = None if id_column is None else [table[id_column] for table in tables]
        self._rows = self._joined((number, row) for number, table in enumerate(tables) for row in range(len(table)))
        if not self._rows:
            raise UserError(f"{paths[0]}: has no rows")

    def _joined(self, rows: Iterator[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """The rows of each example as (number of the file, row), examples in the order of their first rows."""
        if self._ids is None:
            return [[row] for row in rows]
        of_id: dict[str, list[tuple[int, int]]] = {}
        for number, row in rows:
            same = of_id.setdefault(self._id(number, row), [])
            same.append((number, row))
            if len(same) > 1:
                self._check_same(same[0], same[-1])
        return list(of_id.values())

    def _check_same(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        """UserError if two rows of one id have another image, or another concept."""
        where = " and ".join(f"row {row} of {self._names[number]}" for number, row in (one, other))
        said = f"{where} have the id {self._id(*one)!r}"
        if self._images[one[0]][one[1]] != self._images[other[0]][other[1]]:
            raise UserError(f"id_column: {said} and different images; name a column that tells images apart")
        if self._concept(*one) != self._concept(*other):
            raise UserError(f"concept_column: {said} and different concepts; choose one")

    def __reduce__(self) -> tuple[type["ParquetTable"], tuple]:
        """Pickles the arguments only: reading the files again is faster than piping the columns to a worker."""
        return ParquetTable, self._arguments

    def __len__(self) -> int:
        """The number of examples of all files."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """See :class:`Source`."""
        number, row = self._rows[index][0]
        id = self._id(number, row)
        image = self._images[number][row].as_py()
        return Example(
            id=id,
            image=None if image is None else _decode_cell(image, id, self._paths[number].parent),
            captions=self._captions_of(index),
            concept=self._concept(number, row),
        )

    def encoded(self, index: int) -> bytes | None:
        """See :class:`GivesBytes`."""
        number, row = self._rows[index][0]
        cell = self._images[number][row].as_py()
        return None if cell is None else _encoded_cell(cell, self._id(number, row), self._paths[number].parent)

    def captions(self) -> Iterator[Caption]:
        """See :class:`Source`."""
        for index in range(len(self._rows)):
            yield from self._captions_of(index)

    def texts(self) -> Iterator[ExampleTexts]:
        """See :class:`ListsTexts`."""
        for index, rows in enumerate(self._rows):
            number, row = rows[0]
            is_there = self._images[number][row].is_valid
            yield ExampleTexts(self._id(number, row), self._captions_of(index), self._concept(number, row), is_there)

    def remarks(self) -> Iterator[str]:
        """Rows that hold the same image, though nothing says that they belong together; see ``HasRemarks``."""
        again = 0 if self._ids is not None else repeated_images(self._images)
        if again:
            yield (
                f"{again:,} of {len(self):,} rows hold an image that an earlier row has, and count as images of their "
                "own; if rows of one image belong together, name a column that tells images apart: id_column"
            )

    def _id(self, number: int, row: int) -> str:
        given = None if self._ids is None else self._ids[number][row].as_py()
        return f"{self._names[number]}/{row}" if given is None else str(given)

    def _concept(self, number: int, row: int) -> str | None:
        concept = None if self._concepts is None else self._concepts[number][row].as_py()
        return None if concept is None else str(concept)

    def _captions_of(self, index: int) -> tuple[Caption, ...]:
        found: list[Caption] = []
        for number, row in self._rows[index]:
            value = self._captions[number][row].as_py()
            texts = value if isinstance(value, list) else [value]
            named = None if self._languages is None else self._languages[number][row].as_py()
            each = named if isinstance(named, list) and len(named) == len(texts) else [named] * len(texts)
            languages = (one if isinstance(one, str) else self._language for one in each)
            found += [Caption(text, one) for text, one in zip(texts, languages, strict=True) if text is not None]
        return tuple(found)


def _decode_cell(cell: bytes | dict, id: str, folder: Path) -> Tensor:
    """uint8[3, H, W] of one cell of the image column."""
    path = None if isinstance(cell, bytes) or cell.get("bytes") is not None else cell.get("path")
    return decode_image(_encoded_cell(cell, id, folder), id if path is None else str(folder / path))


def _encoded_cell(cell: bytes | dict, id: str, folder: Path) -> bytes:
    """The encoded image of one cell of the image column: bytes, or a struct of bytes and path. Raises CorruptImage."""
    data, path = (cell, None) if isinstance(cell, bytes) else (cell.get("bytes"), cell.get("path"))
    if data is not None:
        return data
    if path is not None:
        return read_encoded(folder / path)
    raise CorruptImage(id, "the row has neither bytes nor a path")
