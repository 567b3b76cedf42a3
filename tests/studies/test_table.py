"""The table of a study: means by plain formulas, and whatever makes numbers incomparable is refused or marked."""

import json
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmlm.commands.study_report import write_report
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure
from mmlm.record.figures import RunFigures
from mmlm.reports.protocols import ScoredBy
from mmlm.reports.run_folder import Metrics, RunFolder, Scores, SplitScores
from mmlm.studies.code import MadeBy, check_code, differing, made_by
from mmlm.studies.contrasts import compare_all
from mmlm.studies.grid import Cell, Run
from mmlm.studies.place import Place
from mmlm.studies.record import StudyRecord, all_arrays, record_in, score_arrays, with_record
from mmlm.studies.scores import ScoredRun, scores_table, study_record
from mmlm.studies.settings import Equal, Study
from mmlm.studies.table import study_report

FIGURES = {"R@1": Figure("R@1", share=True, higher_is_better=True), "loss": Figure("loss", higher_is_better=False)}
CELLS = ["mlp", "pooler"]


def study(**changes: object) -> Study:
    """Two cells."""
    given = {"question": "Which?", "cells": {"mlp": [], "pooler": []}, "baseline": "mlp", "seeds": [0, 1, 2]}
    return Study(**{**given, "splits": ["val"], "metrics": ["R@1", "loss"], **changes})


def scored(cell: str, seed: int, folder: Path = Path("runs/x"), made: str = "aaa", **changes: object) -> ScoredRun:
    """A run that is done, whose scores are plain numbers."""
    facts = {"examples": "e1", "precision": "fp32", "max_tokens": "24", "decoding": "whole", "train": "t1", **changes}
    values = {"R@1": (1 + seed + 3 * CELLS.index(cell)) / 20, "loss": 2.0 + seed}
    kept = ("examples", "precision", "max_tokens", "decoding")
    protocol = ScoredBy(str(facts["examples"]), {key: str(facts[key]) for key in kept}, {})
    data = {"data.train": {"digest": facts["train"]}, "data.validation.val": {"digest": f"d{facts['examples']}"}}
    found = RunFolder(
        folder,
        Metrics({}, 10, 40, 90.0),
        Scores(10, {"val": SplitScores(values)}, "fp32", {"val": protocol}),
        {},
        "",
        {"model": {"parameters": {"encoder": 1000, "bridge": 200 + CELLS.index(cell)}}},
        RunFigures(evaluation=FIGURES),
        data=data,
    )
    return ScoredRun(
        Run(cell, seed, (), folder, 10), found, MadeBy("1234567", (made,)), (3 + seed) * 1e12, (1.5 + seed / 2) * 1e9
    )


def recorded(runs: list[ScoredRun], of: Study | None = None) -> tuple[StudyRecord, pa.Table]:
    """The record of runs, as it comes out of its own file."""
    cells = {cell: Cell(cell, {}, (), None) for cell in CELLS}
    record = study_record("small", of or study(), cells, runs, "python -m mmlm.study small")
    table = with_record(scores_table(runs), record)
    assert record_in(table, "here") == record
    return record, table


def page(runs: list[ScoredRun], of: Study | None = None) -> str:
    record, table = recorded(runs, of)
    arrays = all_arrays(record, table)
    return study_report(record, arrays, compare_all(arrays, record.baseline))


ALL = [(cell, seed) for seed in (0, 1, 2) for cell in CELLS]


def test_means_and_deviations_are_over_seeds():
    text = page([scored(*one) for one in ALL])
    deviation = statistics.stdev([5.0, 10.0, 15.0])
    assert text.splitlines()[4:8] == [
        "| cell | seeds | parameters | steps | TFLOPs | memory, GB | minutes | R@1 | loss (less is better) |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
        f"| mlp (baseline) | 3 | 1,200 | 10 | 4 | 2.50 | 1.5 | 10.0 ± {deviation:.1f} | 3.000 ± 1.000 |",
        f"| pooler | 3 | 1,201 | 10 | 4 | 2.50 | 1.5 | 25.0 ± {deviation:.1f} | 3.000 ± 1.000 |",
    ]
    assert "at equal examples." in text
    assert "- Code: aaa (1234567)." in text
    assert "- Training data: t1." in text
    assert "- val: data de1; protocol e1." in text
    assert "Interim" not in text


def test_a_table_in_between_says_so_and_whether_it_was_planned():
    one_each = [scored(*one) for one in ALL[:2]]
    assert "**Interim**: 1 of 3 seeds are done in every cell; this is no planned look." in page(one_each)
    assert "this is a planned look." in page(one_each, study(looks=[1, 3]))
    assert "**Interim**: 1 of 3 seeds are done in every cell; this is no planned look." in page(
        [scored(*one) for one in ALL[:3]], study(looks=[1, 3])
    )
    alone = page([scored(*one) for one in ALL if one[0] == "mlp"])
    assert "**Interim**: 0 of 3" in alone
    assert "| pooler" not in alone
    assert "| mlp (baseline) | 1 | 1,200 | 10 | 3 | 1.50 | 1.5 | 5.0 | 2.000 |" in page(one_each), (
        "no deviation of one seed"
    )


def test_what_is_held_equal_is_named():
    runs = [scored(*one) for one in ALL]
    for equal in ("flops", "time", "parameters", "nothing"):
        of = study()
        of.matching.equal = Equal(equal)
        told = "each cell has its own steps" if equal == "nothing" else f"at equal {equal}"
        assert f"; {told}." in page(runs, of)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"examples": "e2"}, "val: the examples"),
        ({"max_tokens": "12", "examples": "e3"}, "val: the longest caption, in tokens,"),
        ({"train": "t2"}, "the runs of mlp were trained on different data"),
    ],
    ids=str,
)
def test_unlike_numbers_are_refused_or_flagged(changes, told, tmp_path):
    runs = [scored(*one, **(changes if one == ("mlp", 1) else {})) for one in ALL]
    record, _ = recorded(runs)
    assert told in "; ".join(record.unlike)
    with pytest.raises(UserError) as error:
        write_report(record, runs, Place(tmp_path), None, unlike=False)
    assert told in str(error.value)
    assert str(error.value).endswith("or give unlike=true to see them all")
    assert not any(tmp_path.iterdir())
    assert "- **Not comparable:** " in page(runs)


def test_training_data_may_differ_from_cell_to_cell():
    runs = [scored(*one, train=f"t{CELLS.index(one[0])}") for one in ALL]
    assert "- Training data: t0 (mlp), t1 (pooler)." in page(runs)


def test_runs_of_other_code_are_marked():
    runs = [scored(*one, made="bbb" if one == ("pooler", 2) else "aaa") for one in ALL]
    text = page(runs)
    assert "| pooler † |" in text
    assert "| mlp (baseline) |" in text
    assert "- † Runs of other code: pooler.seed=2." in text
    assert "- Code: aaa (1234567), bbb (1234567)." in text


def test_code_that_a_run_began_with_and_went_on_with(place, tmp_path):
    runs = [Run("mlp", seed, (), tmp_path / f"seed={seed}", 10) for seed in (0, 1, 2)]
    for run, code in zip(runs[:2], ("aaa", "bbb"), strict=True):
        run.folder.mkdir()
        environment = {"git_commit": "1234567890", "git_dirty": code == "bbb", "code": code}
        (run.folder / "environment.json").write_text(json.dumps(environment))
    assert [made_by(run, place) for run in runs] == [MadeBy("1234567", ("aaa",)), MadeBy("1234567+", ("bbb",)), None]
    check_code(runs[:1], place, "aaa")
    with pytest.raises(
        UserError, match=r"^1 of 2 runs that have begun were made by other code \(bbb \(1234567\+\); this"
    ):
        check_code(runs, place, "aaa")
    place.began(runs[0].label, "aaa", pid=1)
    place.began(runs[0].label, "ccc", pid=1)
    made = {run.label: made_by(run, place) for run in runs[:1]}
    assert made["mlp.seed=0"].codes == ("aaa", "ccc")
    assert differing(made) == ["mlp.seed=0"], "a run of two codes is marked wherever it stands"
    (runs[1].folder / "environment.json").write_text("{}")
    assert made_by(runs[1], place) == MadeBy("unknown", ())


def test_arrays_hold_scores_and_their_items(tmp_path):
    runs = []
    for number, (cell, seed) in enumerate(ALL[:5]):
        folder = tmp_path / str(number)
        folder.mkdir()
        columns = {"split": ["val"] * 3, "figure": ["R@1"] * 3, "item": ["b", "a", "c"], "concept": [2, 1, 2]}
        pq.write_table(pa.table({**columns, "value": [0.0, float(number), 1.0]}), folder / "per_item.parquet")
        runs.append(scored(cell, seed, folder))
    record, rows = recorded(runs)
    arrays = score_arrays(record, rows, "val", "R@1")
    expected = [[0.05, 0.1, 0.15], [0.2, 0.25, np.nan]]
    np.testing.assert_array_equal(arrays.values, expected)
    assert arrays.by_item.shape == (2, 3, 3)
    assert arrays.concept.tolist() == [1, 2, 2]
    np.testing.assert_array_equal(arrays.by_item[1, 1], [3.0, 0.0, 1.0])
    assert np.isnan(arrays.by_item[1, 2]).all()
    assert arrays.figure.share
    # Other items in one run: there is no array of items.
    table = pq.read_table(tmp_path / "0" / "per_item.parquet").slice(0, 2)
    pq.write_table(table, tmp_path / "0" / "per_item.parquet")
    _, rows = recorded(runs)
    assert score_arrays(record, rows, "val", "R@1").by_item is None
    assert score_arrays(record, rows, "val", "loss").concept is None
    assert np.isnan(score_arrays(record, rows, "val", "nothing").values).all()
