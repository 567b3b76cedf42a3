"""Reads the files of a run folder (named in ``record/folder.py``), for reports, comparisons and model cards.

    runs/<experiment>/<name or hash>/seed=<n>/
        config.yaml        the resolved config, shown as it is
        environment.json   {"command", "git_commit", "git_dirty", "device", "precision",
                           "model": {"parameters": {part: count}, "flops": {part: count}}, ...}
        metrics.jsonl      one JSON object a row: {"step", "examples", "seconds", "train/loss": ..., "<split>/...": ...}
        watched.jsonl      scores of checkpoints by mmlm.evaluate watch=true (record/watched.py)
        figures.json       what the names of metrics and scores are (record/figures.py)
        scores.json        {"step", "precision"?, "protocols"?: {name: {"hash", ...}},
                            "splits": {name: {"images", "captions", "description"?, "<evaluator>/<name>": ...}}}
        samples.json       {"splits": {name: {"examples": [...], "queries": [...], "extremes": {...}}}}
        items.json         {"splits": {name: {"of": {...}, "images": {column: [...]}, "texts": {column: [...]}}}}
        changes.json       what the config changes of the base experiment (record/changes.py)
        data.json          {split: {"digest", ...}}: what the examples were

Any file may be missing: a report can be made of a run that has just begun. A file that is there and cannot be
understood is a ``UserError`` that names the file and the key. (A last line of ``metrics.jsonl`` that was cut off when
the run was killed is left out. Without a sound ``figures.json`` all numbers are shown under their own names.)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mmlm.core.errors import UserError
from mmlm.record.changes import Changes, read_changes
from mmlm.record.figures import RunFigures, read_figures
from mmlm.record.folder import CONFIG, DATA, ENVIRONMENT, ITEMS, METRICS, SAMPLES, SCORES, WATCHED
from mmlm.record.metrics import read_metrics
from mmlm.record.watched import WatchedRow, read_watched
from mmlm.reports.items import SplitItems, parse_items
from mmlm.reports.json_file import JsonNode, read_json, read_text
from mmlm.reports.protocols import ScoredBy, parse_protocol
from mmlm.reports.samples import SplitSamples, parse_samples

Result = TypeVar("Result")

_COUNTERS = ("step", "examples", "seconds")


@dataclass(frozen=True)
class Series:
    """One metric over training, in order of ``steps``; a step that was logged twice keeps its last value."""

    steps: tuple[int, ...]
    """Optimizer steps."""
    values: tuple[float, ...]
    """One value for each of ``steps``; may be nan or infinite."""

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


@dataclass(frozen=True)
class Metrics:
    """All of ``metrics.jsonl``, and what ``watched.jsonl`` adds to it."""

    series: Mapping[str, Series]
    """By name, such as ``train/loss`` or ``val_style/captioning/CIDEr-D``, in order of first appearance."""
    steps: int = 0
    """Optimizer steps taken so far."""
    examples: int = 0
    """Examples consumed so far."""
    seconds: float = 0.0
    """Seconds of training so far, as the run counted them."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the evaluation splits: the first part of every metric name that is not ``train``."""
        names = dict.fromkeys(name.split("/", 1)[0] for name in self.series if "/" in name)
        return tuple(name for name in names if name != "train")


@dataclass(frozen=True)
class SplitScores:
    """The scores of one split."""

    values: Mapping[str, float]
    """By name without the split, such as ``image_to_text/R@1``."""
    images: int | None = None
    captions: int | None = None
    description: str = ""
    """One line of text for the reader: what of this split was not seen in training."""


@dataclass(frozen=True)
class Scores:
    """``scores.json``: every split at one step."""

    step: int
    """Optimizer step of the weights that were scored."""
    splits: Mapping[str, SplitScores]
    precision: str | None = None
    """The precision that they were scored in; None if the file does not say (of a run older than that)."""
    protocols: Mapping[str, ScoredBy] = field(default_factory=dict)
    """How each split was scored; none of a run that is older than that."""


@dataclass(frozen=True)
class RunFolder:
    """All files of one run. A missing file is None, empty text or an empty mapping."""

    path: Path
    metrics: Metrics
    scores: Scores | None
    samples: Mapping[str, SplitSamples]
    """Sample images by the name of the split."""
    config: str
    """Text of ``config.yaml``."""
    environment: Mapping[str, object]
    """The object in ``environment.json``."""
    figures: RunFigures = field(default_factory=RunFigures)
    """What the names of metrics and scores are."""
    items: Mapping[str, SplitItems] = field(default_factory=dict)
    """What the scores of each split are made of."""
    changes: Changes | None = None
    """What the config changes of the base experiment; None if nobody has written it down."""
    data: Mapping[str, object] = field(default_factory=dict)
    """The object in ``data.json``."""

    @property
    def experiment(self) -> str:
        """The experiment's name: the part of the path between ``runs`` and the run's name."""
        parts = self.path.resolve().parts
        if self.seed is None:
            return parts[-1]
        begin = len(parts) - 1 - parts[::-1].index("runs") + 1 if "runs" in parts else len(parts) - 3
        return "/".join(parts[begin:-2]) or parts[-2]

    @property
    def name(self) -> str | None:
        """The run's own name or config hash; None outside of the usual folder layout."""
        return None if self.seed is None else self.path.resolve().parts[-2]

    @property
    def seed(self) -> int | None:
        """The seed in the folder's name; None outside of the usual folder layout."""
        found = re.fullmatch(r"seed=(\d+)", self.path.resolve().name)
        return int(found[1]) if found and len(self.path.resolve().parts) > 3 else None

    @property
    def display_path(self) -> str:
        """The path from ``runs`` on. A page is passed around, and should not name the other folders of a machine."""
        parts = self.path.resolve().parts
        return "/".join(parts[parts.index("runs") :]) if "runs" in parts else parts[-1]

    @property
    def parameters(self) -> Mapping[str, int]:
        """Parameters of each part of the model, in the order of ``environment.json``; empty if unknown."""
        return self._counts_of_parts("parameters")

    @property
    def flops(self) -> Mapping[str, int]:
        """FLOPs of each part of the model, forward, for one image and one caption; empty if unknown."""
        return self._counts_of_parts("flops")

    def _counts_of_parts(self, kind: str) -> Mapping[str, int]:
        model = self.environment.get("model")
        counts = model.get(kind) if isinstance(model, dict) else None
        if not isinstance(counts, dict):
            return {}
        return {part: count for part, count in counts.items() if isinstance(count, int) and count > 0}


def read_run_folder(path: Path, tell: Callable[[str], None] | None = None) -> RunFolder:
    """Reads a run folder, finished or not.

    Raises ``UserError`` when ``path`` is no folder, holds neither ``config.yaml`` nor ``metrics.jsonl``, or when one of
    its files is damaged or cannot be understood. With ``tell``, results for which that holds are left out
    instead, and ``tell`` is given the line.
    """
    if not path.is_dir():
        raise UserError(f"run={path}: no such folder; give a run folder such as runs/<experiment>/<name>/seed=0")
    if not (path / CONFIG).is_file() and not (path / METRICS).is_file():
        raise UserError(
            f"run={path}: not a run folder (it holds neither {CONFIG} nor {METRICS}); "
            "give one such as runs/<experiment>/<name>/seed=0"
        )
    scores, samples = _result(path / SCORES, _parse_scores, tell), _result(path / SAMPLES, parse_samples, tell)
    return RunFolder(
        path=path,
        metrics=_read_metrics(path / METRICS, _unless_bad(lambda: read_watched(path / WATCHED), tell) or ()),
        scores=scores,
        samples=samples or {},
        config=read_text(path / CONFIG) or "",
        environment=read_json(path / ENVIRONMENT) or {},
        figures=read_figures(path),
        items=_result(path / ITEMS, parse_items, tell) or {},
        changes=_unless_bad(lambda: read_changes(path), tell),
        data=_unless_bad(lambda: read_json(path / DATA), tell) or {},
    )


def _result(file: Path, parse: Callable[[JsonNode], Result], tell: Callable[[str], None] | None) -> Result | None:
    """What ``parse`` makes of a file; None without the file, and as ``_unless_bad`` has it."""

    def read() -> Result | None:
        content = read_json(file)
        return None if content is None else parse(JsonNode(content, file.name))

    return _unless_bad(read, tell)


def _unless_bad(read: Callable[[], Result | None], tell: Callable[[str], None] | None) -> Result | None:
    """What ``read`` gives; None if it raises a UserError and ``tell`` is there to hear it."""
    try:
        return read()
    except UserError as error:
        if tell is None:
            raise
        tell(f"left out: {error}")
        return None


def _read_metrics(path: Path, watched: Sequence[WatchedRow]) -> Metrics:
    """The rows of training, with ``watched`` between them: at one step, what training itself has measured counts."""
    rows = read_metrics(path) if path.is_file() else []
    points: dict[str, dict[int, float]] = {}
    newest: dict[str, float] = dict.fromkeys(_COUNTERS, 0)
    for number, row in enumerate(rows, start=1):
        if "step" not in row:
            raise UserError(f"{path}, line {number}: has no step; delete that line")
        # Later rows replace earlier ones: a run that was killed logs the steps after its checkpoint a second time.
        newest |= {name: row[name] for name in _COUNTERS if name in row}
        for name, value in row.items():
            if name not in _COUNTERS:
                points.setdefault(name, {})[int(row["step"])] = value
    own = {(name, step) for name, values in points.items() for step in values}
    for watched_row in watched:
        for name, value in watched_row.values.items():
            if (name, watched_row.step) not in own:
                points.setdefault(name, {})[watched_row.step] = value
    series = {name: Series(*zip(*sorted(values.items()), strict=True)) for name, values in points.items()}
    return Metrics(series, int(newest["step"]), int(newest["examples"]), newest["seconds"])


def _parse_scores(root: JsonNode) -> Scores:
    splits, protocols = root.get("splits", dict), root.get("protocols", dict, {})
    return Scores(
        step=root.get("step", int).value,
        splits={name: _parse_split_scores(splits.get(name, dict)) for name in splits.value},
        precision=root.get("precision", str).value if root.value.get("precision") is not None else None,
        protocols={name: parse_protocol(protocols.get(name, dict)) for name in protocols.value},
    )


def _parse_split_scores(node: JsonNode) -> SplitScores:
    about = ("images", "captions", "description")
    return SplitScores(
        values={name: node.get(name, float).value for name in node.value if name not in about},
        images=node.get("images", int).value if "images" in node.value else None,
        captions=node.get("captions", int).value if "captions" in node.value else None,
        description=node.get("description", str, "").value,
    )
