"""A table of image paths and captions in a CSV or TSV file, as spreadsheets write it."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed
from mmlm.data.images import read_encoded, read_image

ENDINGS = ("", ".csv", ".tsv")
"""What is put behind the name of the file to find it."""
DELIMITERS = (",", ";", "\t", "|")
"""What may stand between two cells. Spreadsheets write ``;`` where the comma belongs to numbers."""
ROWS_AT_ONCE = 2**16
"""Rows that are Python's texts at a time, before they become Arrow's."""
SCHEMA = pa.schema(
    {
        "line": pa.int64(),
        "image": pa.large_string(),
        "captions": pa.large_list(pa.large_string()),
        "concept": pa.large_string(),
        "language": pa.large_string(),
    }
)
"""A row as it is read. ``line`` is where it begins in the file, from 1."""


@dataclass(frozen=True)
class _Columns:
    """The names of the columns to read, as they were given."""

    image: str
    captions: Sequence[str]
    concept: str | None
    language: str | None

    def named(self) -> list[tuple[str, str]]:
        """Each column with the argument that names it."""
        single = [("image_column", self.image), ("concept_column", self.concept), ("language_column", self.language)]
        return [
            *((argument, name) for argument, name in single if name is not None),
            *(("caption_columns", name) for name in self.captions),
        ]


@dataclass(frozen=True)
class _Format:
    """How the bytes of a file become rows of cells."""

    encoding: str
    delimiter: str
    quotes: bool


class TextTable:
    """The images and captions of a CSV or TSV file.

    The first row names the columns, in any order; columns that are not asked for are passed over. The path of an image
    is looked up from the table's own folder on, and is the example's id. Rows of one image are one example, at the
    place of the first of them, with the captions of all: a table may give each caption of an image a row, or a column.
    A blank cell among several caption columns is no caption. A blank concept is none. Blanks around a cell are dropped,
    and any blanks or line breaks inside of a caption become single blanks. Rows of blank cells are passed over.

    A cell in quotes may hold the delimiter, line breaks, and quotes that are written twice. Every other row has as
    many cells as the first. A byte order mark is passed over.

    The file is read once, here: some seconds and 0.5 GB for a million rows of short captions, until it is done. What
    stays, and what each data worker is sent, are Arrow and numpy arrays of the cells: their bytes, and about 32 more
    for each row. Python's csv module reads it, because Arrow's reader cannot say in which line a quote is left open.

    Args:
        folder: the folder of the data set. Null, which ``${data.path}`` is until it is given, is refused.
        file: the table, from ``folder`` on, or with its whole path. Its ending may be left out if it is .csv or .tsv.
        image_column: the column of image paths.
        caption_columns: the column of captions, or a list of several.
        concept_column: the column of concepts; null for none.
        language_column: the column of the languages of the captions; null for none.
        language: the language of the captions whose row names none.
        encoding: how the characters are written: ``utf-8``, ``cp1252``, ``utf-16`` or another that Python knows.
        delimiter: what stands between two cells. Null takes that of ``,``, ``;``, tab and ``|`` by which the first row
            has the most of the columns that are asked for.
        quotes: whether quotes around a cell belong to the format. False takes them as characters like any other, as
            some programs that are no spreadsheets write them; then no cell can hold the delimiter or a line break.

    Raises:
        ArgumentError: no ``folder``, no or twice the same caption column, a column that is not in the table (told with
            those that are), an unknown encoding, a delimiter of several characters.
        UserError: a missing file, two that ``file`` could mean, a file that is not in ``encoding``, two columns of a
            name that is asked for, a quote that is not closed, a row with more or fewer cells than the first, without
            an image or without a caption, two concepts of one image, no rows, or the first image missing. A later
            image that is missing is a ``CorruptImage`` when it is read.

    The format is that of RFC 4180 (Shafranovich, 2005), with more delimiters, blanks after them, and any line ends.
    """

    def __init__(
        self,
        folder: str | Path | None,
        file: str | Path = "train",
        image_column: str = "image",
        caption_columns: str | Sequence[str] = "caption",
        concept_column: str | None = None,
        language_column: str | None = None,
        language: str | None = None,
        encoding: str = "utf-8",
        delimiter: str | None = None,
        quotes: bool = True,
    ) -> None:
        captions = [caption_columns] if isinstance(caption_columns, str) else list(caption_columns)
        if not captions or len(set(captions)) < len(captions):
            raise ArgumentError(f"caption_columns: {captions} must name at least one column, and none of them twice")
        _check_encoding(encoding)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '" \r\n'):
            raise ArgumentError(f"delimiter: {delimiter!r} must be one character, no quote, blank or line break")
        path = _find(folder, Path(file))
        columns = _Columns(image_column, captions, concept_column, language_column)
        if delimiter is None:
            delimiter = _delimiter(path, encoding, quotes, columns)
        table = _read(path, _Format(encoding, delimiter, quotes), columns, language)
        self._folder = path.parent
        first = self._folder / table["image"][0].as_py()
        if not first.is_file():
            where = f"line {table['line'][0]} of {path} names it"
            raise UserError(f"{first}: there is no such image, but {where}; write paths from the table's folder on")
        self._group(path, table)

    def _group(self, path: Path, table: pa.Table) -> None:
        """Makes an example of the rows of each image. Raises UserError."""
        names = table["image"].combine_chunks().dictionary_encode()  # the names in the order of their first rows
        image = names.indices.to_numpy()  # int32[rows]
        rows = np.bincount(image)  # int64[examples]: how many each has
        starts = np.cumsum(rows) - rows
        table = table.take(pa.array(np.argsort(image, kind="stable")))
        captions = table["captions"].combine_chunks()
        lengths = captions.value_lengths().to_numpy()
        concepts = table["concept"].combine_chunks().dictionary_encode()
        codes = concepts.indices.fill_null(-1).to_numpy()
        other = np.flatnonzero(codes != np.repeat(codes[starts], rows))
        if len(other):
            here = int(other[0])
            start = int(starts[np.searchsorted(starts, here, side="right") - 1])
            was, now = (repr(concepts[i].as_py()) if concepts[i].is_valid else "none" for i in (start, here))
            raise UserError(
                f"{path}: line {table['line'][here]}: the concept of {table['image'][here].as_py()!r} is {now}, "
                f"but {was} in line {table['line'][start]}; give all rows of an image the same"
            )
        languages = table["language"].combine_chunks().dictionary_encode()
        self._names = names.dictionary
        self._concepts = concepts.take(pa.array(starts))
        self._texts = captions.flatten()
        self._languages = languages.take(pa.array(np.repeat(np.arange(len(table)), lengths)))
        # Example i has the texts from _offsets[i] to _offsets[i + 1].
        self._offsets = np.concatenate([[0], np.cumsum(np.add.reduceat(lengths, starts))])

    def __len__(self) -> int:
        """Number of images: of rows, if none is in several rows."""
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        name = self._names[index].as_py()
        return Example(name, read_image(self._folder / name), self._of_image(index), self._concepts[index].as_py())

    def encoded(self, index: int) -> bytes:
        """See ``GivesBytes`` in ``mmlm/data/sources.py``."""
        return read_encoded(self._folder / self._names[index].as_py())

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return map(self._caption, range(len(self._texts)))

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        for index, (name, concept) in enumerate(zip(self._names, self._concepts, strict=True)):
            yield ExampleTexts(name.as_py(), self._of_image(index), concept.as_py(), True)

    def _of_image(self, index: int) -> tuple[Caption, ...]:
        return tuple(self._caption(i) for i in range(self._offsets[index], self._offsets[index + 1]))

    def _caption(self, index: int) -> Caption:
        return Caption(self._texts[index].as_py(), self._languages[index].as_py())


def header_of(path: Path, encoding: str = "utf-8") -> list[str]:
    """The names in the first row, by the delimiter that makes the most of them. Raises UserError for a file of none."""
    found: list[str] = []
    for delimiter in DELIMITERS:
        try:
            row = next(_rows(path, _Format(encoding, delimiter, True)), (0, 0, []))[2]
        except UserError:
            if delimiter == DELIMITERS[0]:  # by another one, quotes may well be wrong
                raise
            continue
        found = max(found, row, key=len)
    if not found:
        raise UserError(f"{path}: is empty; its first row must name the columns, such as image and caption")
    return found


def _find(folder: str | Path | None, name: Path) -> Path:
    """The file of the table. Raises ArgumentError and UserError."""
    if folder is None:
        raise ArgumentError("folder: null must be the folder of the data set; give data.path=FOLDER")
    folder = Path(folder)
    if folder.is_file():
        raise ArgumentError(f"folder: {folder} is a file; give {folder.parent} here, and {folder.name} as the file")
    found = [path for path in (folder / f"{name}{ending}" for ending in ENDINGS) if path.is_file()]
    if len(found) > 1:
        raise UserError(f"{folder / name}: is {' and '.join(path.name for path in found)}; write the ending too")
    if not found:
        tables = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in (".csv", ".tsv", ".txt"))
        has = f"its folder has {listed(tables, 10)}" if tables else "its folder has no table"
        raise UserError(f"{folder / name}: is no file, nor with .csv or .tsv behind it ({has}); name the table in file")
    return found[0]


def _check_encoding(encoding: str) -> None:
    """Raises ArgumentError if Python does not know the encoding, or if it is none of texts, such as base64."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError):
        message = f"encoding: '{encoding}' must be one that Python knows, such as utf-8, cp1252 or utf-16"
        raise ArgumentError(message) from None


def _delimiter(path: Path, encoding: str, quotes: bool, columns: _Columns) -> str:
    """What stands between two cells, by the columns of the first row."""
    wanted = {name for _, name in columns.named()}

    def columns_by(delimiter: str) -> tuple[int, int]:
        try:
            _, _, header = next(_rows(path, _Format(encoding, delimiter, quotes)))
        except (StopIteration, UserError):
            # What is wrong is told when the rows are read; by another delimiter, quotes may well be wrong.
            return 0, 0
        return len(wanted.intersection(header)), len(header)

    return max(DELIMITERS, key=columns_by)


def _read(path: Path, form: _Format, columns: _Columns, language: str | None) -> pa.Table:
    """The rows of the file, of ``SCHEMA``. Raises ArgumentError and UserError."""
    rows = _rows(path, form)
    header = next(rows, None)
    if header is None:
        raise UserError(f"{path}: is empty; its first row must name the columns, such as {columns.image}")
    examples = _examples(path, rows, header[2], form.delimiter, columns, language)
    batches = []
    while some := list(islice(examples, ROWS_AT_ONCE)):
        arrays = [pa.array(cells, field.type) for cells, field in zip(zip(*some, strict=True), SCHEMA, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
    if not batches:
        raise UserError(f"{path}: has no row below the names of the columns; add the images and captions")
    return pa.Table.from_batches(batches)


def _examples(
    path: Path,
    rows: Iterator[tuple[int, int, list[str]]],
    header: list[str],
    delimiter: str,
    columns: _Columns,
    language: str | None,
) -> Iterator[tuple[int, str, list[str], str | None, str | None]]:
    """The values of ``SCHEMA`` for each row below the header. Raises ArgumentError and UserError."""
    for argument, name in columns.named():
        if name not in header:
            there = [repr(column) for column in header if column]
            cure = "name one of them" if len(there) > 1 else "name it, or give the delimiter"
            raise ArgumentError(f"{argument}: '{name}' is no column of {path}, which has {listed(there, 20)}; {cure}")
        if header.count(name) > 1:
            raise UserError(f"{path}: has {header.count(name)} columns '{name}'; give each a name of its own")
    image, concept_at, language_at = (
        None if name is None else header.index(name) for name in (columns.image, columns.concept, columns.language)
    )
    assert image is not None
    captions = [header.index(name) for name in columns.captions]
    for first, last, cells in rows:
        if len(cells) != len(header):
            wrong = f"the number of cells, {len(cells)}, must be the first row's, {len(header)}"
            cure = f"put quotes around a cell with {delimiter!r} or a line break in it, and close all quotes"
            raise UserError(f"{_lines_of(path, first, last)}: {wrong}; {cure}")
        texts = [" ".join(cells[i].split()) for i in captions if cells[i]]
        if not cells[image]:
            raise UserError(
                f"{_lines_of(path, first, last)}: '{columns.image}' is blank; name the image, or remove the row"
            )
        if not texts:
            blank = listed([f"'{name}'" for name in columns.captions], 5)
            raise UserError(f"{_lines_of(path, first, last)}: has no caption in {blank}; write one, or remove the row")
        concept = None if concept_at is None else cells[concept_at] or None
        yield first, cells[image], texts, concept, language if language_at is None else cells[language_at] or language


def _lines_of(path: Path, first: int, last: int) -> str:
    """Where a row is."""
    return f"{path}: line {first}" if first == last else f"{path}: lines {first} to {last}"


def _rows(path: Path, form: _Format) -> Iterator[tuple[int, int, list[str]]]:
    """The first and last line, and the cells, of each row that is not blank. Raises UserError."""
    # Strict, or a quote that is left open would swallow the rest of the file without a word.
    reader = csv.reader(
        _lines(path, form.encoding),
        delimiter=form.delimiter,
        quoting=csv.QUOTE_MINIMAL if form.quotes else csv.QUOTE_NONE,
        skipinitialspace=True,
        strict=True,
    )
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cure = "close it, write a quote inside of a quoted cell twice, or set quotes=false if they are plain text"
            found = f"the row that begins here has an unbalanced quote (noticed in line {reader.line_num}: {error})"
            raise UserError(f"{path}: line {first}: {found}; {cure}") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield first, reader.line_num, cells


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of the file with their ends, without a byte order mark. Raises UserError."""
    cure = "save it as UTF-8, or give the encoding that it was saved in, such as cp1252, utf-16 or utf-16-le"
    try:
        with path.open(encoding=encoding, newline="") as stream:
            for number, line in enumerate(stream, start=1):
                # UTF-16 without its mark is valid UTF-8, with a zero beside each letter.
                if "\0" in line:
                    raise UserError(
                        f"{path}: line {number}: has a zero character, which {encoding} text has not; {cure}"
                    )
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError:
        raise UserError(f"{path}: {_where_undecodable(path, encoding)}; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _where_undecodable(path: Path, encoding: str) -> str:
    """The line and byte of a file that is not in the encoding: the stream itself decodes many lines at once."""
    try:
        path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding)
        # The line that the byte is in counts too, even if nothing stands before it: hence the dot.
        line = sum(1 for _ in io.StringIO(f"{before}.", newline=""))
        return f"line {line}: is not {encoding} (byte 0x{error.object[error.start]:02x})"
    except UnicodeError:
        pass
    return f"line 1: is not {encoding}"  # the mark at its beginning is missing
