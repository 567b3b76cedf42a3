"""A study that is done, without any training: its record and the rows of its scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from mmlm.studies.record import RecordedRun, ShownFigure, StudyRecord, with_record
from mmlm.studies.scores import SCHEMA

ITEMS = 40
METRICS = ("R@1", "loss")


def values_of(cell: str, seed: int, better: Mapping[str, float]) -> np.ndarray:
    """float64[ITEMS]: right or wrong for each item, more often right in cells that are ``better``."""
    luck = np.random.default_rng(seed).uniform(-0.05, 0.05)
    hard = np.random.default_rng(99).uniform(0, 1, ITEMS)
    return (hard < 0.4 + luck + better.get(cell, 0.0)).astype(np.float64)


def study(
    better: Mapping[str, float],
    cells: Sequence[str] = ("mlp", "pooler"),
    seeds: Sequence[int] = tuple(range(8)),
    axes: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[StudyRecord, pa.Table]:
    """The record of a study whose first cell is the baseline, and its rows. ``loss`` has no items."""
    runs, rows = [], []
    for seed in seeds:
        for cell in cells:
            place = list(cells).index(cell)
            runs.append(
                RecordedRun(
                    label=f"{cell}.seed={seed}",
                    cell=cell,
                    seed=seed,
                    commit="1234567",
                    codes=("aaa",),
                    parameters=1000 + place,
                    steps=10,
                    flops=1e12 * (1 + place),
                    memory=1e9,
                    seconds=60.0,
                    train_data="t1",
                    data={"val": "d1"},
                    protocols={"val": "p1"},
                )
            )
            values = values_of(cell, seed, better)
            about = {"cell": cell, "seed": seed, "run": "x", "split": "val"}
            rows += [
                {**about, "figure": "R@1", "value": float(values.mean())},
                {**about, "figure": "loss", "value": 2.0 + seed / 10 + place},
                {**about, "figure": "other", "value": 1.0},
            ]
            rows += [
                {**about, "figure": "R@1", "item": f"i{item:02}", "concept": item // 2, "value": float(value)}
                for item, value in enumerate(values)
            ]
    record = StudyRecord(
        name="small",
        command="python -m mmlm.study small",
        question="Which <bridge>?",
        baseline=cells[0],
        cells=tuple(cells),
        axes=axes or {},
        seeds=tuple(seeds),
        looks=(),
        matched="at equal examples",
        tuned="",
        splits=("val",),
        metrics=METRICS,
        figures={"R@1": ShownFigure(True, True), "loss": ShownFigure(False, False)},
        runs=tuple(runs),
    )
    return record, with_record(pa.Table.from_pylist(rows, schema=SCHEMA), record)
