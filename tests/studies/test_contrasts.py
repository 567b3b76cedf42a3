"""Cells against the baseline: the numbers of a study's table are those of the statistics, over whole seeds only."""

import dataclasses

import numpy as np
import pytest

from mmlm.statistics.contrasts import compare_cells
from mmlm.studies.contrast_table import contrast_tables, latex_table, p_value
from mmlm.studies.contrasts import compare_with
from mmlm.studies.record import all_arrays, score_arrays
from tests.studies.recorded import ITEMS, study, values_of

BETTER = {"pooler": 0.3}


def test_a_contrast_is_that_of_plain_arrays():
    record, rows = study(BETTER)
    compared = compare_with(score_arrays(record, rows, "val", "R@1"), "mlp")
    cells = {cell: np.stack([values_of(cell, seed, BETTER) for seed in range(8)]) for cell in ("mlp", "pooler")}
    (expected,) = compare_cells(cells, np.arange(ITEMS) // 2, [("mlp", "pooler")])
    assert compared.contrasts == (expected,)
    assert compared.seeds == tuple(range(8))
    assert compared.means["pooler"].mean == pytest.approx(cells["pooler"].mean())
    assert expected.significant


def test_only_seeds_that_all_cells_have_are_compared():
    record, rows = study(BETTER)
    without = rows.filter([not (cell == "pooler" and seed == 3) for cell, seed in zip(*columns(rows), strict=True)])
    runs = tuple(run for run in record.runs if (run.cell, run.seed) != ("pooler", 3))
    compared = compare_with(score_arrays(dataclasses.replace(record, runs=runs), without, "val", "R@1"), "mlp")
    assert compared.seeds == (0, 1, 2, 4, 5, 6, 7)


def columns(rows) -> tuple[list, list]:
    return rows["cell"].to_pylist(), rows["seed"].to_pylist()


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({}, "loss", "it is no mean over items"),
        ({"seeds": (0,)}, "R@1", "1 seeds are done in every cell, and an interval takes 2"),
        ({"cells": ("mlp",)}, "R@1", "no run of another cell than mlp is done"),
    ],
)
def test_why_there_is_no_contrast(changes, name, told):
    record, rows = study(BETTER, **changes)
    compared = compare_with(score_arrays(record, rows, "val", name), "mlp")
    assert told in compared.lacking
    assert compared.contrasts == ()
    assert f"no contrast, since {compared.lacking}." in "\n".join(contrast_tables([compared]))


def test_a_study_without_its_baseline():
    record, rows = study(BETTER, cells=("pooler", "mlp"))
    compared = compare_with(score_arrays(record, rows, "val", "R@1"), "other")
    assert compared.lacking == "no run of the baseline other is done"


def test_tables_in_markdown_and_latex():
    record, rows = study(BETTER)
    compared = [compare_with(one, record.baseline) for one in all_arrays(record, rows)]
    text = "\n".join(contrast_tables(compared))
    contrast = compared[0].contrasts[0]
    assert f"| pooler | {100 * contrast.difference:+.1f} | [" in text
    assert f"| {p_value(contrast.adjusted)} | {p_value(contrast.adjusted_beyond)} |" in text
    assert text.count("better |") == 1
    latex = latex_table(record.name, compared)
    assert rf"pooler & ${100 * compared[0].means['pooler'].mean:.1f} \pm" in latex
    assert latex.count(r"\\") == 3
    assert latex.count("R@1") == 1
    assert "loss" not in latex, "a score without contrasts is in no table of contrasts"
    three, rows = study(BETTER, seeds=(0, 1, 2))
    few = "\n".join(contrast_tables([compare_with(score_arrays(three, rows, "val", "R@1"), "mlp")]))
    assert "| - | - |" in few
    assert "no test is possible" in few
    assert p_value(0.0004) == "<0.001"
