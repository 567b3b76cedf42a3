"""A verdict needs cells that were tuned alike; planned looks keep their level."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from mmlm.core.errors import UserError
from mmlm.statistics.looks import LookPlan, progress
from mmlm.studies.contrasts import compare_all
from mmlm.studies.fairness import look_lines, no_verdict, tuning_lines, tunings
from mmlm.studies.record import StudyRecord, all_arrays
from mmlm.studies.table import study_tables
from mmlm.studies.tuning import TUNED, tuned_scores
from tests.studies.recorded import study, values_of


def parabola(best: float, taken: float, values=(0.001, 0.002, 0.004)) -> dict[str, float]:
    """Scores that fall with the square of the distance from the best value, in octaves."""
    return {"taken": taken, **{f"{value:g}": 1 - 0.1 * np.log2(value / best) ** 2 for value in values}}


def tables_of(record: StudyRecord, rows: pa.Table) -> str:
    arrays = all_arrays(record, rows)
    return "\n".join(study_tables(record, arrays, compare_all(arrays, record.baseline)))


def test_the_best_value_and_what_another_one_costs():
    record, _ = study({})
    record = dataclasses.replace(record, tuning={"mlp": parabola(0.002, 0.002), "pooler": parabola(0.002, 0.001)})
    assert tunings(record)["pooler"].fit.best == pytest.approx(0.002)
    assert tunings(record)["pooler"].regret == pytest.approx(0.1)
    assert no_verdict(record) is None
    lines = list(tuning_lines(record))
    assert lines[1] == "- Tuning of pooler: best 0.002; 0.001 was taken, which costs 0.1 of the first score."


def test_a_side_that_was_tuned_less_gets_no_verdict():
    record, rows = study({"pooler": 0.3})
    assert "| better |" in tables_of(record, rows)
    less = {"mlp": parabola(0.002, 0.002, (0.001, 0.002, 0.004, 0.008)), "pooler": parabola(0.002, 0.002)}
    record = dataclasses.replace(record, tuning=less)
    text = tables_of(record, rows)
    assert "| none: tuned unequally |" in text
    assert "- **No verdict**: pooler was tuned less: 3 rates against 4 of mlp." in text
    edge = {"mlp": parabola(0.002, 0.002), "pooler": parabola(0.016, 0.004)}
    assert "lies outside of those tried" in no_verdict(dataclasses.replace(record, tuning=edge))


def test_two_values_have_no_parabola():
    record, _ = study({})
    record = dataclasses.replace(record, tuning={"mlp": {"taken": 1.0, "1": 0.5, "2": 0.4}})
    assert tunings(record) == {}
    assert no_verdict(record) is None


def test_looks_say_what_is_decided():
    record, rows = study({"pooler": 0.3}, cells=("mlp", "pooler", "other"), seeds=tuple(range(8)))
    record = dataclasses.replace(record, looks=(6, 8))
    means = {cell: [values_of(cell, seed, {"pooler": 0.3}).mean() for seed in range(8)] for cell in record.cells}
    apart = np.stack([np.subtract(means[cell], means["mlp"]) for cell in ("pooler", "other")], axis=1)
    expected = progress(apart, LookPlan((6, 8)))
    (line,) = look_lines(record, all_arrays(record, rows))
    assert line.startswith("- Look at 8 of 8 seeds, val: R@1: pooler differs, other open (")
    assert expected.decided == (True, False)
    six = dataclasses.replace(record, runs=tuple(run for run in record.runs if run.seed < 7))
    (line,) = look_lines(six, all_arrays(six, rows))
    assert line.startswith("- Look at 6 of 8 seeds")
    assert list(look_lines(dataclasses.replace(record, looks=()), all_arrays(record, rows))) == []
    assert list(look_lines(dataclasses.replace(record, looks=(2, 3)), all_arrays(record, rows))) == []


def test_what_was_tuned_is_read_again(place):
    assert tuned_scores(place) == {}
    place.folder.mkdir(parents=True)
    (place.folder / TUNED).write_text('{"mlp": {"taken": 0.002, "0.001": 0.4}}')
    assert tuned_scores(place) == {"mlp": {"taken": 0.002, "0.001": 0.4}}
    (place.folder / TUNED).write_text("[1]")
    with pytest.raises(UserError, match=r"tuned\.json: is damaged"):
        tuned_scores(place)
