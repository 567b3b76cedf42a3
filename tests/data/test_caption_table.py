"""Captions in arrays: what rows say, as plain lists of Python would have it, in a fraction of the memory."""

import gc
import pickle
import tracemalloc
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import pyarrow as pa
import pytest

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.data import caption_table
from mmlm.data.caption_table import CaptionTable, Row, TwoConcepts
from mmlm.data.image_folder import ImageFolder
from mmlm.data.text_table import TextTable
from tests.conftest import draw

ROWS = [
    Row(2, "b.png", ["a", "b"], "x", "de"),
    Row(3, None, ["only text"], None, None),
    Row(5, "a.png", [], None, "en"),
    Row(6, "b.png", ["c"], "x", None),
    Row(8, None, [], "y", None),
    Row(9, "line 3", ["half \ud83d"], None, None),
]

OF_KINDS = [
    Row(10, "b.png", ["d", "e"], "x", None, ["title", "alt"]),
    Row(11, "c.png", [], None, None, []),
    Row(12, "b.png", ["f", "g"], "x", "en", [None, "title"]),
]


def plain(rows: list[Row]) -> list[ExampleTexts]:
    """By loops over lists."""
    found: dict[tuple[str, bool], ExampleTexts] = {}
    for row in rows:
        key = (f"line {row.line}" if row.image is None else row.image, row.image is not None)
        captions = tuple(map(Caption, row.texts, repeat(row.language), row.kinds or repeat(None)))
        before = found[key].captions if key in found else ()
        found[key] = ExampleTexts(key[0], before + captions, row.concept, key[1])
    return list(found.values())


@pytest.mark.parametrize("at_once", [1, 2, 1000])
@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[:1], ROWS[1:2], [ROWS[0], ROWS[3]], ROWS[2:3], [*ROWS, *OF_KINDS]], ids=len
)
def test_the_examples_of_rows_are_those_of_plain_lists(monkeypatch, at_once, rows):
    monkeypatch.setattr(caption_table, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(caption_table, "LISTED_AT_ONCE", at_once)
    expected = plain(rows)
    table, lines = CaptionTable.of_rows(iter(rows))
    table = pickle.loads(pickle.dumps(table))
    assert list(table.texts()) == expected
    captions = [caption for example in expected for caption in example.captions]
    assert list(table.captions()) == captions
    assert [caption.kind for caption in table.captions()] == [caption.kind for caption in captions]
    numbers = range(len(table))
    assert [table.name(i) for i in numbers] == [example.id for example in expected]
    assert [table.captions_of(i) for i in numbers] == [example.captions for example in expected]
    assert [table.concept(i) for i in numbers] == [example.concept for example in expected]
    images = [(i, example.id) for i, example in enumerate(expected) if example.has_image]
    assert list(table.images()) == images
    assert [(i, table.image(i)) for i in numbers if table.image(i) is not None] == images
    firsts = dict.fromkeys(row.image or row.line for row in rows)
    assert lines.tolist() == [min(r.line for r in rows if (r.image or r.line) == first) for first in firsts]


def test_kinds_take_a_byte_for_each_caption_and_nothing_where_there_are_none():
    def table_of(*kinds: Sequence[str | None] | None) -> CaptionTable:
        return CaptionTable.of_rows(Row(1 + n, f"{n}.png", ["a", "b"], None, None, of) for n, of in enumerate(kinds))[0]

    without, blank = table_of(*[None] * 50), table_of(*[[None, None]] * 50)
    assert without._kinds is None
    assert blank._kinds is None
    assert table_of(*[["title", "alt"]] * 49, None).nbytes - without.nbytes == 100
    many = [[f"{2 * n}", f"{2 * n + 1}"] for n in range(200)]
    assert [caption.kind for caption in table_of(*many).captions()] == [str(n) for n in range(400)]


def test_the_examples_of_lists():
    table = CaptionTable.of_lists(["a", "b", "c"], [["x", "y"], [], ["z"]], "en")
    assert list(table.texts()) == [
        ExampleTexts("a", (Caption("x", "en"), Caption("y", "en")), None, True),
        ExampleTexts("b", (), None, True),
        ExampleTexts("c", (Caption("z", "en"),), None, True),
    ]
    assert table.image(1) == "b"


def test_the_first_row_of_the_file_with_another_concept_is_told():
    rows = [Row(1, "a", ["x"], None, None), Row(2, "b", ["x"], "p", None), Row(3, "b", ["x"], "q", None)]
    with pytest.raises(TwoConcepts) as told:
        CaptionTable.of_rows([*rows, Row(4, "a", ["x"], "r", None)])
    two = told.value
    assert (two.image, two.line, two.concept, two.first_line, two.first_concept) == ("b", 3, "q", 2, "p")


COUNT = 3_000


def jsonl(folder: Path) -> ImageFolder:
    lines = (
        f'{{"image": "a.png", "caption": "a caption of fifty letters, as they are {row:9d}"}}' for row in range(COUNT)
    )
    texts = (
        f'{{"image": null, "caption": "a caption of fifty letters, as they are {row:9d}"}}' for row in range(COUNT)
    )
    (folder / "captions.jsonl").write_text("\n".join([*lines, *texts]))
    return ImageFolder(folder)


def csv(folder: Path) -> TextTable:
    rows = (f"a.png,a caption of fifty letters as they are {row:9d},p,en" for row in range(COUNT))
    more = (f"{row:016d}.png,a caption of fifty letters as they are {row:9d},q,de" for row in range(COUNT))
    (folder / "train.csv").write_text("\n".join(["image,caption,concept,language", *rows, *more]))
    return TextTable(folder, concept_column="concept", language_column="language")


@pytest.mark.parametrize("make", [jsonl, csv])
def test_a_row_costs_its_bytes_and_little_more_and_nothing_grows_over_epochs(tmp_path, make):
    """Of 6,000 rows: what is sent to a worker, and what is left of Python's and Arrow's memory after each pass."""
    draw("red", "square").save(tmp_path / "a.png")
    sent = pickle.dumps(make(tmp_path))
    assert len(sent) < 2 * COUNT * 110, "at most 110 bytes a row: 50 letters, 16 of a name, and 32 beside"
    source = pickle.loads(sent)
    gc.collect()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        left = []
        for _ in range(3):
            assert sum(1 for _ in source.captions()) == 2 * COUNT
            assert sum(len(example.captions) for example in source.texts()) == 2 * COUNT
            left.append((tracemalloc.get_traced_memory()[0], pa.total_allocated_bytes() - arrow))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert left[2][0] - left[1][0] < 20_000, left
    assert left[2][1] == left[0][1] == 0, left
    assert most < 3e6, "one example has half of all captions, and a block of others is listed at a time"
