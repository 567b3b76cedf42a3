"""The rows of a CSV or TSV file, as spreadsheets write it, each with its lines."""

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmlm.core.errors import ArgumentError, UserError

DELIMITERS = (",", ";", "\t", "|")
"""What may stand between two cells. Spreadsheets write ``;`` where the comma belongs to numbers."""


@dataclass(frozen=True)
class Format:
    """How the bytes of a file become rows of cells."""

    encoding: str
    delimiter: str
    quotes: bool


def header_of(path: Path, encoding: str = "utf-8") -> list[str]:
    """The names in the first row, by the delimiter that makes the most of them. Raises UserError for a file of none."""
    found: list[str] = []
    for delimiter in DELIMITERS:
        try:
            row = next(rows_of_cells(path, Format(encoding, delimiter, True)), (0, 0, []))[2]
        except UserError:
            if delimiter == DELIMITERS[0]:  # by another one, quotes may well be wrong
                raise
            continue
        found = max(found, row, key=len)
    if not found:
        raise UserError(f"{path}: is empty; its first row must name the columns, such as image and caption")
    return found


def check_encoding(encoding: str) -> None:
    """Raises ArgumentError if Python does not know the encoding, or if it is none of texts, such as base64."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError):
        message = f"encoding: '{encoding}' must be one that Python knows, such as utf-8, cp1252 or utf-16"
        raise ArgumentError(message) from None


def delimiter_of(path: Path, encoding: str, quotes: bool, wanted: Collection[str]) -> str:
    """What stands between two cells: that by which the first row has the most of the ``wanted`` columns."""

    def columns_by(delimiter: str) -> tuple[int, int]:
        try:
            _, _, header = next(rows_of_cells(path, Format(encoding, delimiter, quotes)))
        except (StopIteration, UserError):
            # What is wrong is told when the rows are read; by another delimiter, quotes may well be wrong.
            return 0, 0
        return len({*wanted}.intersection(header)), len(header)

    return max(DELIMITERS, key=columns_by)


def rows_of_cells(path: Path, form: Format) -> Iterator[tuple[int, int, list[str]]]:
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
