"""A table of image paths and captions in a CSV or TSV file, as spreadsheets write it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed
from mmlm.data.caption_table import CaptionTable, Row, TwoConcepts
from mmlm.data.captioned_images import CaptionedImages
from mmlm.data.csv_rows import Format, check_encoding, delimiter_of, rows_of_cells

ENDINGS = ("", ".csv", ".tsv")
"""What is put behind the name of the file to find it."""


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


class TextTable(CaptionedImages):
    """The images and captions of a CSV or TSV file.

    The first row names the columns, in any order; columns that are not asked for are passed over. The path of an image
    is looked up from the table's own folder on, and is the example's id. Rows of one image are one example, at the
    place of the first of them, with the captions of all: a table may give each caption of an image a row, or a column.
    Several columns are kinds of captions by their names. A blank cell among several caption columns is no caption. A
    blank concept is none. Blanks around a cell are dropped, and any blanks or line breaks inside of a caption become
    single blanks. Rows of blank cells are passed over.

    A cell in quotes may hold the delimiter, line breaks, and quotes that are written twice. Every other row has as
    many cells as the first. A byte order mark is passed over.

    The file is read once, here: some seconds and 0.5 GB for a million rows of short captions, until it is done. What
    stays, and what each data worker is sent, is a ``CaptionTable``: the bytes of the cells, and about 32 more for each
    row. Python's csv module reads it, because Arrow's reader cannot say in which line a quote is left open.

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
        check_encoding(encoding)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '" \r\n'):
            raise ArgumentError(f"delimiter: {delimiter!r} must be one character, no quote, blank or line break")
        path = _find(folder, Path(file))
        columns = _Columns(image_column, captions, concept_column, language_column)
        if delimiter is None:
            delimiter = delimiter_of(path, encoding, quotes, {name for _, name in columns.named()})
        rows = _read(path, Format(encoding, delimiter, quotes), columns, language)
        head = next(rows, None)
        if head is None:
            raise UserError(f"{path}: has no row below the names of the columns; add the images and captions")
        try:
            table, _ = CaptionTable.of_rows(chain([head], rows))
        except TwoConcepts as two:
            was, now = ("none" if one is None else repr(one) for one in (two.first_concept, two.concept))
            raise UserError(
                f"{path}: line {two.line}: the concept of {two.image!r} is {now}, but {was} in line {two.first_line}; "
                "give all rows of an image the same"
            ) from None
        first = path.parent / str(head.image)
        if not first.is_file():
            where = f"line {head.line} of {path} names it"
            raise UserError(f"{first}: there is no such image, but {where}; write paths from the table's folder on")
        super().__init__(path.parent, table)


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


def _read(path: Path, form: Format, columns: _Columns, language: str | None) -> Iterator[Row]:
    """The rows of the file. Raises ArgumentError and UserError."""
    rows = rows_of_cells(path, form)
    header = next(rows, None)
    if header is None:
        raise UserError(f"{path}: is empty; its first row must name the columns, such as {columns.image}")
    yield from _examples(path, rows, header[2], form.delimiter, columns, language)


def _examples(
    path: Path,
    rows: Iterator[tuple[int, int, list[str]]],
    header: list[str],
    delimiter: str,
    columns: _Columns,
    language: str | None,
) -> Iterator[Row]:
    """Each row below the header. Raises ArgumentError and UserError."""
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
        kinds = None if len(captions) == 1 else [header[i] for i in captions if cells[i]]
        if not cells[image]:
            raise UserError(
                f"{_lines_of(path, first, last)}: '{columns.image}' is blank; name the image, or remove the row"
            )
        if not texts:
            blank = listed([f"'{name}'" for name in columns.captions], 5)
            raise UserError(f"{_lines_of(path, first, last)}: has no caption in {blank}; write one, or remove the row")
        concept = None if concept_at is None else cells[concept_at] or None
        named = None if language_at is None else cells[language_at]
        yield Row(first, cells[image], texts, concept, named or language, kinds)


def _lines_of(path: Path, first: int, last: int) -> str:
    """Where a row is."""
    return f"{path}: line {first}" if first == last else f"{path}: lines {first} to {last}"
