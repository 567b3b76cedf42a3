"""``python -m mmlm.bench sources``: what it measures of a few rows, its table, and mistakes."""

import pickle

import pytest

from mmlm.bench import __main__ as bench
from mmlm.bench import source_memory
from mmlm.bench.source_memory import FORMATS, Opened, Worked, opening, working


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_made_opened_and_worked_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr(source_memory, "IMAGES", 4)
    monkeypatch.setattr(source_memory, "FOLDERS", 3)
    monkeypatch.setattr(source_memory, "SHARD", 4)
    FORMATS[name].make(tmp_path, 12)
    assert opening(name, tmp_path).rows == 12
    source = pickle.loads((tmp_path / "source.pickle").read_bytes())
    assert len({texts.id for texts in source.texts()}) == 12
    assert source[11].image.shape == (3, 8, 8)
    worked = working(tmp_path, epochs=2, examples=3)
    assert len(worked.held) == 2
    assert worked.sent == (tmp_path / "source.pickle").stat().st_size


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: float, held: list[int]) -> None:
    found = (Opened(seconds, 1_000_000), Worked(5_000_000, held))
    monkeypatch.setattr(source_memory, "_measured", lambda name, settings: found)


def test_the_table_and_what_is_promised(command, monkeypatch, tmp_path):
    pretend(monkeypatch, 9.5, [120_000_000, 121_000_000])
    out = tmp_path / "table.md"
    outcome = command(bench, "sources", "formats=[csv,tar]", f"out={out}")
    assert outcome.status == 0
    assert outcome.out.splitlines()[-4:-1] == [
        "| csv | 1,000,000 | 9.5 | 5.0 | 120, 121 |",
        "| tar | 1,000,000 | 9.5 | 5.0 | 120, 121 |",
        "",
    ]
    assert "at most 128 of them and 105 MB" in outcome.out.splitlines()[-1]
    assert out.read_text() == outcome.out
    pretend(monkeypatch, 10.5, [120_000_000])
    assert command(bench, "sources").status == 1
    pretend(monkeypatch, 1.5, [201_000_000])
    assert command(bench, "sources").status == 1
    assert command(bench, "sources", "rows=2000000").status == 0, "of so many nothing is promised"


def test_mistakes(command):
    assert "formats: 'cvs' is none; did you mean 'csv'?" in command(bench, "sources", "formats=[cvs]").mistake
    assert "rows: 0 must be at least 1" in command(bench, "sources", "rows=0").mistake
