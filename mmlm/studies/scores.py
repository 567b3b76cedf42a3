"""Reads the runs of a study that are done, and makes its record of them (``record.py``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, declared
from mmlm.record.folder import METRICS, PER_ITEM
from mmlm.record.manifest import read_recorded
from mmlm.record.metrics import read_metrics
from mmlm.reports.protocols import unlike_protocols
from mmlm.reports.run_folder import RunFolder, read_run_folder
from mmlm.studies.code import MadeBy, made_by
from mmlm.studies.grid import Cell, Run
from mmlm.studies.place import Place
from mmlm.studies.record import RecordedRun, ShownFigure, StudyRecord
from mmlm.studies.settings import Equal, Study

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

    def has(self, figure: str) -> bool:
        """Whether some split has the score."""
        return self.folder.scores is not None and any(figure in of.values for of in self.folder.scores.splits.values())

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


def scores_table(scored: Sequence[ScoredRun]) -> pa.Table:
    """Every score and item of the runs; ``SCHEMA`` has the columns."""
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
    return pa.concat_tables(tables)


def study_record(
    name: str, study: Study, cells: Mapping[str, Cell], scored: Sequence[ScoredRun], command: str
) -> StudyRecord:
    """What the tables of a study are made of beside the scores. ``command`` trains it."""
    equal, tuning = study.matching.equal, study.tuning
    figures = {metric: one.figure(metric) for one in scored for metric in study.metrics if one.has(metric)}
    return StudyRecord(
        name=name,
        command=command,
        question=study.question,
        baseline=study.baseline,
        cells=tuple(cells),
        axes={cell.name: dict(cell.levels) for cell in cells.values()},
        seeds=tuple(study.seeds),
        looks=tuple(study.looks),
        matched="each cell has its own steps" if equal is Equal.nothing else f"at equal {equal.value}",
        tuned=f"{tuning.setting} is tuned, by {len(tuning.values)} values a cell" if tuning.values else "",
        splits=tuple(study.splits),
        metrics=tuple(study.metrics),
        figures={metric: ShownFigure(one.share, one.higher_is_better) for metric, one in figures.items()},
        runs=tuple(_recorded(one, study.splits) for one in scored),
        unlike=tuple(_unlike(study.splits, scored)),
    )


def _recorded(one: ScoredRun, splits: Sequence[str]) -> RecordedRun:
    return RecordedRun(
        label=one.run.label,
        cell=one.run.cell,
        seed=one.run.seed,
        commit=one.made.commit,
        codes=one.made.codes,
        parameters=sum(one.folder.parameters.values()),
        steps=one.run.steps,
        flops=one.flops,
        memory=one.memory,
        seconds=one.folder.metrics.seconds,
        train_data=one.digest("data.train"),
        data={split: one.digest(f"data.validation.{split}") for split in splits},
        protocols={split: one.protocol(split) for split in splits},
    )


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


def _unlike(splits: Sequence[str], scored: Sequence[ScoredRun]) -> list[str]:
    """What makes the numbers incomparable; training data may differ from cell to cell, and not within one."""
    found = []
    protocols = {
        one.run.label: {split: known[split] for split in splits if split in known}
        for one in scored
        if one.folder.scores is not None and (known := one.folder.scores.protocols)
    }
    told = unlike_protocols(protocols)
    if told is not None:
        found.append(told)
    for split in splits:
        if len(_digests(scored, f"data.validation.{split}")) > 1:
            found.append(f"the runs were scored on different data of {split}")
    for cell in dict.fromkeys(one.run.cell for one in scored):
        if len(_digests([one for one in scored if one.run.cell == cell], "data.train")) > 1:
            found.append(f"the runs of {cell} were trained on different data")
    return found


def _digests(scored: Sequence[ScoredRun], key: str) -> set[str]:
    """The digests of some data, as far as they are known."""
    return {digest for one in scored if (digest := one.digest(key)) is not None}
