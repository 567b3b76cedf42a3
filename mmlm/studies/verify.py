"""Tables that check themselves: those of studies in a page are made again from the record beside it, and compared.

A table stands between ``<!-- study: objectives.parquet -->``, which names the record, and ``<!-- end of study -->``.
"""

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmlm.core.errors import UserError
from mmlm.record.folder import write_whole, write_whole_bytes
from mmlm.studies.contrasts import compare_all
from mmlm.studies.record import StudyRecord, all_arrays, record_in, with_record
from mmlm.studies.table import study_tables

END = "<!-- end of study -->"
_BLOCK = re.compile(r"<!-- study: (?P<file>[^\s>]+) -->\n(?P<text>.*?)" + re.escape(END), flags=re.DOTALL)


@dataclass(frozen=True)
class Checked:
    """A table of a page."""

    record: str
    """The file that it is made of, as the page names it."""
    difference: str | None
    """The first line that is another than it should be; None if all are right."""


def check_page(page: Path) -> list[Checked]:
    """Every study's table in a page. Raises UserError for a page or a record that cannot be read."""
    text = _text_of(page)
    found = [(block["file"], block["text"]) for block in _BLOCK.finditer(text)]
    return [Checked(file, _difference(page.parent / file, own)) for file, own in found]


def put_into(page: Path, record: StudyRecord, table: pa.Table) -> Path:
    """Writes a study's tables into a page, in place of older ones of its name or at the end, and its record beside it.

    Returns the file of the record. It has the scores that the tables show, and their items, and nothing else. Raises
    UserError if the page is there and cannot be read.
    """
    file = page.parent / f"{record.name}.parquet"
    of_splits, of_metrics = (
        pc.is_in(table[column], pa.array(names))
        for column, names in (("split", record.splits), ("figure", record.metrics))
    )
    kept = with_record(table.filter(pc.and_(of_splits, of_metrics)), record)
    text = _text_of(page) if page.exists() else f"# {record.name}\n\n{record.question}\n"
    block = f"<!-- study: {file.name} -->\n{_tables(record, kept)}{END}"
    older = next((found for found in _BLOCK.finditer(text) if found["file"] == file.name), None)
    before, after = (f"{text.rstrip()}\n\n", "\n") if older is None else (text[: older.start()], text[older.end() :])
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole_bytes(file, as_parquet(kept))
    write_whole(page, before + block + after)
    return file


def as_parquet(table: pa.Table) -> bytes:
    """The bytes of a Parquet file, zstd-compressed."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _text_of(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{page}: cannot be read ({error})") from None


def _tables(record: StudyRecord, table: pa.Table) -> str:
    arrays = all_arrays(record, table)
    return "\n".join(study_tables(record, arrays, compare_all(arrays, record.baseline))) + "\n"


def _difference(file: Path, text: str) -> str | None:
    """The first line of ``text`` that is not as the record has it."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({error!s:.120})") from None
    expected = _tables(record_in(table, str(file)), table)
    for number, (own, true) in enumerate(zip_longest(text.splitlines(), expected.splitlines()), start=1):
        if own != true:
            return f"line {number} of it is {own!r}, and should be {true!r}"
    return None
