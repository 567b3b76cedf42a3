"""The page of a study: every section that there is something for, and nothing that a name could break out of."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa

from mmlm.reports.run_folder import Metrics, RunFolder, Series
from mmlm.reports.samples import SampleExample, SplitSamples
from mmlm.studies.contrasts import compare_all
from mmlm.studies.page import best_cells, study_page
from mmlm.studies.record import StudyRecord, all_arrays, score_arrays
from tests.studies.recorded import study

PIXEL = "data:image/png;base64,iVBORw0KGgo="
AXES = {
    "a+x": {"one": "a", "two": "x"},
    "a+y": {"one": "a", "two": "y"},
    "b+x": {"one": "b", "two": "x"},
    "b+y": {"one": "b", "two": "y"},
}


def folders(record: StudyRecord) -> dict[str, RunFolder]:
    """A folder for each run, with a curve and a sample."""
    found = {}
    for run in record.runs:
        example = SampleExample("1", PIXEL, ("a <b>dog</b>",), f"said by {run.cell}", False, (), None)
        loss = Series((1, 2, 3), tuple(3.0 - step + run.seed / 10 for step in range(3)))
        metrics = Metrics({"train/loss": loss}, 3, 30, 60.0)
        found[run.label] = RunFolder(
            Path("x"), metrics, None, {"val": SplitSamples((example,), ())}, config="", environment={}
        )
    return found


def page_of(record: StudyRecord, rows: pa.Table, of_runs: Mapping[str, RunFolder]) -> str:
    arrays = all_arrays(record, rows)
    return study_page(record, arrays, compare_all(arrays, record.baseline), of_runs)


class Ids(HTMLParser):
    """The ids of sections."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if tag == "section" and name == "id"]


def sections(text: str) -> list[str]:
    parser = Ids()
    parser.feed(text)
    return parser.found


def test_a_page_has_what_there_is():
    record, rows = study({"b+x": 0.3, "b+y": 0.3}, cells=tuple(AXES), axes=AXES)
    text = page_of(record, rows, folders(record))
    assert sections(text) == ["scores", "differences", "curves", "against-compute", "two-axes", "the-same-images"]
    assert "Which &lt;bridge&gt;?" in text
    assert "a &lt;b&gt;dog&lt;/b&gt;" in text
    assert "said by b+y" in text
    assert text.count("<title>b+x: +") >= 1
    # Two of four cells are good: the table of levels has one colour for each, and the best are bold.
    assert text.count('<td class="best">') >= 2
    assert len(set(re.findall(r"color-mix\(in srgb, var\(--series-1\) (\d+)%", text))) >= 2
    assert re.search(r"<script|http-equiv=\"refresh\"|https?://(?!www\.w3\.org)", text) is None


def test_a_page_of_little():
    record, rows = study({}, seeds=(0,))
    text = page_of(record, rows, {})
    assert sections(text) == ["scores", "differences", "against-compute"]
    assert "No contrast: 1 seeds are done in every cell" in text


def test_the_best_and_what_is_as_good():
    record, rows = study({"b": 0.3, "c": 0.3}, cells=("a", "b", "c"))
    assert best_cells(score_arrays(record, rows, "val", "R@1")) == {"b", "c"}
    assert best_cells(score_arrays(record, rows, "val", "loss")) == {"a"}, "less is better"
    assert best_cells(score_arrays(record, rows, "val", "nothing")) == set()
