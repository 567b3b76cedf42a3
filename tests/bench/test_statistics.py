"""``python -m mmlm.bench statistics``: its tables, studies of recorded runs, and mistakes."""

import numpy as np
import pytest

from mmlm.bench import __main__ as bench
from mmlm.bench import statistics
from mmlm.core.errors import UserError
from mmlm.reports.paired import Items


def test_the_tables(command, tmp_path):
    out = tmp_path / "table.md"
    outcome = command(bench, "statistics", "studies=20", "seeds=[3,6]", f"out={out}")
    assert outcome.status in (0, 1)
    text = out.read_text(encoding="utf-8")
    assert "`python -m mmlm.bench statistics studies=20 'seeds=[3,6]' out=" in text
    assert "| alike | 3 | no test | no test | " in text
    assert "| alike but for the items | 6 | " in text
    assert "| over seeds | 6 | 1 | 3.0 | " in text
    assert "| and items | 6 | 3 | " in text
    assert "4 pairs of ladders" in text
    assert "| obrien_fleming | 8, 10, 12 | " in text
    assert (outcome.status == 0) == text.strip().endswith("All within bounds.")


def test_recorded_runs_are_one_more_kind(monkeypatch):
    random = np.random.default_rng(0)
    names = tuple(f"{row:04}" for row in range(90))

    def read_items(folder):
        return {("test", "image_to_text/R@5"): Items(names, np.arange(90) // 3, random.normal(size=90))}

    monkeypatch.setattr(statistics, "chosen_run", lambda folder: folder)
    monkeypatch.setattr(statistics, "read_items", read_items)
    found = statistics.read_recorded_studies(["a", "b", "c"], "test/image_to_text/R@5")
    assert found.runs.shape == (3, 90)
    with pytest.raises(UserError, match="score: a has no val/R@5"):
        statistics.read_recorded_studies(["a", "b"], "val/R@5")
    with pytest.raises(UserError, match="at least 2 seeds"):
        statistics.read_recorded_studies(["a"], "test/image_to_text/R@5")


@pytest.mark.parametrize(
    ("argument", "mistake"),
    [
        ("studies=0", "studies: 0 must be at least 1"),
        ("seeds=[1]", "seeds: 1 must be at least 2"),
        ("seeds=[]", "seeds: [] is empty"),
    ],
)
def test_impossible_settings_are_refused(command, argument, mistake):
    assert mistake in command(bench, "statistics", argument).mistake
