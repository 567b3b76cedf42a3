"""What a study's tables are made of: its runs and scores, as one Parquet file that can be read without the runs.

``runs.parquet`` has a row for every score and every item of a run (``scores.py``), and in its metadata a
``StudyRecord``. The table, the contrasts and the page of numbers follow from this file alone, so that it can be
committed beside a page, whose tables are then checked against it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure

_KEY = b"study"
"""Of the record in the file's metadata."""


@dataclass(frozen=True)
class RecordedRun:
    """What a table says of a run beside its scores."""

    label: str
    cell: str
    seed: int
    commit: str
    """See ``MadeBy``."""
    codes: tuple[str, ...]
    parameters: int
    steps: int
    flops: float
    """Of its training."""
    memory: float
    """Bytes at its peak."""
    seconds: float
    """Of its training."""
    train_data: str | None
    """Digest of the examples; None if nobody knows."""
    data: Mapping[str, str | None]
    """Digest of the examples of each split."""
    protocols: Mapping[str, str | None]
    """Hash of how each split was scored."""


@dataclass(frozen=True)
class ShownFigure:
    """What a table has to know of a score."""

    share: bool
    higher_is_better: bool | None

    def figure(self, name: str) -> Figure:
        """The declaration."""
        return Figure(name, share=self.share, higher_is_better=self.higher_is_better)


@dataclass(frozen=True)
class StudyRecord:
    """A study and its runs."""

    name: str
    command: str
    """What trains it."""
    question: str
    baseline: str
    cells: tuple[str, ...]
    axes: Mapping[str, Mapping[str, str]]
    """By cell: the level on each axis; empty where cells are listed."""
    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    matched: str
    """What is held equal, in words."""
    tuned: str
    """What was tuned, in words; empty for nothing."""
    splits: tuple[str, ...]
    metrics: tuple[str, ...]
    figures: Mapping[str, ShownFigure]
    runs: tuple[RecordedRun, ...]
    unlike: tuple[str, ...] = ()
    """What makes the numbers incomparable."""


@dataclass(frozen=True)
class ScoreArrays:
    """One score of one split."""

    split: str
    figure: Figure
    name: str
    """Of the score among those of the split."""
    cells: tuple[str, ...]
    seeds: tuple[int, ...]
    values: np.ndarray
    """float64[cells, seeds]; NaN where a run is not done or does not have the score."""
    by_item: np.ndarray | None
    """float64[cells, seeds, items], likewise; None if the score is no mean, or runs have other items than others."""
    concept: np.ndarray | None
    """int64[items]: items of one concept are not independent. None where ``by_item`` is."""


def with_record(table: pa.Table, record: StudyRecord) -> pa.Table:
    """The rows with the record in their metadata."""
    return table.replace_schema_metadata({_KEY: json.dumps(asdict(record)).encode()})


def record_in(table: pa.Table, where: str) -> StudyRecord:
    """The record in the metadata of a table. Raises UserError, which names ``where`` it is from."""
    try:
        given: dict[str, Any] = json.loads((table.schema.metadata or {})[_KEY])
        runs = tuple(RecordedRun(**{**run, "codes": tuple(run["codes"])}) for run in given["runs"])
        figures = {name: ShownFigure(**shown) for name, shown in given["figures"].items()}
        lists = {key: tuple(given[key]) for key in ("cells", "seeds", "looks", "splits", "metrics", "unlike")}
        return StudyRecord(**{**given, **lists, "runs": runs, "figures": figures})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{where}: is no record of a study; write it by python -m mmlm.study NAME report") from None


def all_arrays(record: StudyRecord, table: pa.Table) -> list[ScoreArrays]:
    """Every score of every split that the study shows."""
    return [score_arrays(record, table, split, name) for split in record.splits for name in record.metrics]


def score_arrays(record: StudyRecord, table: pa.Table, split: str, name: str) -> ScoreArrays:
    """One score of all runs."""
    own = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["figure"], name)))
    values = np.full((len(record.cells), len(record.seeds)), np.nan)
    names: dict[tuple[int, int], tuple[str, ...]] = {}
    items: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for run in record.runs:
        at = record.cells.index(run.cell), record.seeds.index(run.seed)
        of_run = own.filter(pc.and_(pc.equal(own["cell"], run.cell), pc.equal(own["seed"], run.seed)))
        whole = of_run.filter(pc.is_null(of_run["item"]))
        if len(whole):
            values[at] = whole["value"][0].as_py()
        each = of_run.filter(pc.is_valid(of_run["item"])).sort_by("item")
        if len(each):
            names[at] = tuple(each["item"].to_pylist())
            items[at] = each["concept"].to_numpy(), each["value"].to_numpy()
    by_item, concept = None, None
    if items and len(items) == np.isfinite(values).sum() and len(set(names.values())) == 1:
        concept = next(iter(items.values()))[0].astype(np.int64)
        by_item = np.full((*values.shape, len(concept)), np.nan)
        for at, (_, found) in items.items():
            by_item[at] = found
    shown = record.figures.get(name)
    figure = Figure(name) if shown is None else shown.figure(name)
    return ScoreArrays(split, figure, name, record.cells, record.seeds, values, by_item, concept)


def digests(runs: Sequence[RecordedRun], split: str | None) -> dict[str, list[str]]:
    """By digest of the training data (None) or of a split: the cells that it stands for, in order."""
    found: dict[str, list[str]] = {}
    for run in runs:
        digest = (run.train_data if split is None else run.data.get(split)) or "unknown"
        cells = found.setdefault(digest, [])
        if run.cell not in cells:
            cells.append(run.cell)
    return found
