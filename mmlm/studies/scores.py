"""The scores of all runs of a study: as arrays to compute with, and as one Parquet file of every score and item."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, declared
from mmlm.record.folder import METRICS, PER_ITEM
from mmlm.record.manifest import read_recorded
from mmlm.record.metrics import read_metrics
from mmlm.reports.paired import Items, read_items
from mmlm.reports.run_folder import RunFolder, read_run_folder
from mmlm.studies.code import MadeBy, made_by
from mmlm.studies.grid import Run
from mmlm.studies.place import Place

SCHEMA = pa.schema(
    {
        "cell": pa.string(),
        "seed": pa.int64(),
        "run": pa.string(),
        "commit": pa.string(),
        "code": pa.string(),
        "data": pa.string(),
        "protocol": pa.string(),
        "split": pa.string(),
        "figure": pa.string(),
        "item": pa.string(),
        "concept": pa.int64(),
        "value": pa.float64(),
    }
)
"""A row is a score (``item`` is null), or the value of one item of a score that is a mean."""


@dataclass(frozen=True)
class ScoredRun:
    """A run that is done, with what its numbers depend on."""

    run: Run
    folder: RunFolder
    made: MadeBy
    flops: float = 0.0
    """Of its training, as its rows of metrics count them."""
    memory: float = 0.0
    """Bytes at its peak."""

    def score(self, split: str, figure: str) -> float | None:
        """A score; None if the run does not have it."""
        scores = self.folder.scores
        of_split = None if scores is None else scores.splits.get(split)
        return None if of_split is None else of_split.values.get(figure)

    def figure(self, name: str) -> Figure:
        """What a score is."""
        return declared(self.folder.figures.evaluation, name)

    def digest(self, split: str) -> str | None:
        """The digest of the examples of ``data.train``, or of ``data.validation.<split>``; None if nobody knows."""
        record = self.folder.data.get(split)
        found = record.get("digest") if isinstance(record, Mapping) else None
        return None if found is None else str(found)[:12]

    def protocol(self, split: str) -> str | None:
        """The hash of how a split was scored; None of a run that is older than that."""
        found = None if self.folder.scores is None else self.folder.scores.protocols.get(split)
        return None if found is None else found.hash


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


def read_scored(runs: Sequence[Run], place: Place) -> list[ScoredRun]:
    """Those of ``runs``, which are done, with all that is read of them. Raises UserError for damaged files."""
    found = []
    for run in runs:
        made = made_by(run, place)
        folder = read_run_folder(run.folder)
        if folder.scores is None:
            raise UserError(f"{run.folder}: has no scores; evaluate it: python -m mmlm.evaluate run={run.folder}")
        flops, memory = _spent(read_metrics(run.folder / METRICS))
        found.append(ScoredRun(run, folder, made or MadeBy("unknown", ()), flops, memory))
    return found


def _spent(rows: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """FLOPs and peak memory in bytes of rows of metrics, each of which counts since the one before it."""
    flops, memory, before = 0.0, 0.0, 0.0
    for row in rows:
        if "train/tflops_per_second" in row:
            flops += 1e12 * row["train/tflops_per_second"] * (row["seconds"] - before)
            memory = max(memory, 1e9 * row["train/peak_memory"])
            before = row["seconds"]
    return flops, memory


def score_arrays(
    scored: Sequence[ScoredRun], cells: Sequence[str], seeds: Sequence[int], split: str, name: str
) -> ScoreArrays:
    """One score of all runs, as arrays."""
    values = np.full((len(cells), len(seeds)), np.nan)
    items: dict[tuple[int, int], Items] = {}
    figure = Figure(name)
    for one in scored:
        at = cells.index(one.run.cell), seeds.index(one.run.seed)
        value = one.score(split, name)
        if value is not None:
            values[at] = value
            figure = one.figure(name)
            of_run = read_items(one.run.folder).get((split, name))
            if of_run is not None:
                items[at] = of_run
    by_item, concept = None, None
    first = next(iter(items.values()), None)
    if (
        first is not None
        and len(items) == np.isfinite(values).sum()
        and all(i.names == first.names for i in items.values())
    ):
        by_item, concept = np.full((*values.shape, len(first.names)), np.nan), first.concept
        for at, of_run in items.items():
            by_item[at] = of_run.values
    return ScoreArrays(split, figure, name, tuple(cells), tuple(seeds), values, by_item, concept)


def scores_file(scored: Sequence[ScoredRun]) -> bytes:
    """The Parquet file of every score and item of the runs, zstd-compressed; ``SCHEMA`` has its columns."""
    tables = [SCHEMA.empty_table()]
    for one in scored:
        scores = one.folder.scores
        assert scores is not None, "read_scored refuses a run without scores"
        rows = [(split, name, value) for split, of in scores.splits.items() for name, value in of.values.items()]
        splits = [split for split, _, _ in rows]
        tables.append(_rows(one, splits, [name for _, name, _ in rows], None, None, [value for *_, value in rows]))
        file = one.run.folder / PER_ITEM
        if file.is_file():
            table = pq.read_table(pa.BufferReader(read_recorded(file)))
            columns = {key: table[key].to_pylist() for key in ("split", "figure", "item", "concept", "value")}
            tables.append(_rows(one, *columns.values()))
    content = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), content, compression="zstd")
    return content.getvalue()


def _rows(
    one: ScoredRun,
    splits: Sequence[str],
    figures: Sequence[str],
    items: Sequence[str] | None,
    concepts: Sequence[int] | None,
    values: Sequence[float],
) -> pa.Table:
    """Rows of one run."""
    count = len(values)
    protocols = {split: one.protocol(split) for split in dict.fromkeys(splits)}
    return pa.table(
        {
            "cell": [one.run.cell] * count,
            "seed": [one.run.seed] * count,
            "run": ["/".join(one.run.folder.parts[-3:])] * count,
            "commit": [one.made.commit] * count,
            "code": ["+".join(one.made.codes)] * count,
            "data": [one.digest("data.train")] * count,
            "protocol": [protocols[split] for split in splits],
            "split": list(splits),
            "figure": list(figures),
            "item": [None] * count if items is None else list(items),
            "concept": [None] * count if concepts is None else list(concepts),
            "value": [float(value) for value in values],
        },
        schema=SCHEMA,
    )
