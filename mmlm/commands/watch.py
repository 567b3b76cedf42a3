"""Scores the checkpoints of a run beside its training, each once, as they appear."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import torch

from mmlm.checkpoints.files import CorruptCheckpointError, digest_of, folders, step_of
from mmlm.cli.arguments import EvaluateArguments
from mmlm.cli.runs import chosen_run
from mmlm.commands.evaluate import own_splits, training_captions, where_trained, with_decoding, with_evaluators
from mmlm.core.errors import UserError
from mmlm.core.figure import shown_in
from mmlm.core.precision import Precision
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.unreadable import Unreadable
from mmlm.evaluation.evaluate import Evaluation, evaluation_figures
from mmlm.evaluation.evaluators import Evaluator
from mmlm.evaluation.training_captions import TrainingCaptions
from mmlm.experiment.build import build_evaluators, build_splits
from mmlm.experiment.compatibility import check_evaluators
from mmlm.experiment.config import Config
from mmlm.experiment.config_file import load_config
from mmlm.experiment.device import choose_device
from mmlm.experiment.experiment import find_splits
from mmlm.experiment.saved_run import TrainedRun, load_run, scored_group
from mmlm.record.console import Console
from mmlm.record.environment import precision_of_run
from mmlm.record.figures import RunFigures, record_figures
from mmlm.record.folder import CHECKPOINTS, CONFIG, REPORT, WATCHED
from mmlm.record.watched import WatchedRow, add_watched, read_watched
from mmlm.reports.page import write_report
from mmlm.training.messages import describe_corrupt


def watch_run(arguments: EvaluateArguments, wait: Callable[[float], None] = time.sleep) -> int:
    """Scores every checkpoint of the run that is not scored yet, and those to come until its last step is.

    ``wait`` is called with ``watch_seconds`` where there is nothing to do. Returns the exit status. Raises UserError.
    """
    if arguments.data is not None:
        raise UserError("watch: scores a run's own splits, as its training does; leave out data= or watch=")
    if not arguments.watch_seconds > 0:
        raise UserError(f"watch_seconds: {arguments.watch_seconds:g} must be above 0")
    device = choose_device(arguments.device)
    folder = chosen_run(arguments.run).resolve()
    config = with_evaluators(load_config(folder / CONFIG, arguments.plugins), arguments)
    precision = arguments.precision or precision_of_run(config.train.precision, folder, device)
    evaluators, own, console = (
        with_decoding(build_evaluators(config), arguments.decoding),
        own_splits(config, arguments),
        Console(),
    )
    asked = [sorted(own), config.evaluators, asdict(arguments.decoding), precision.name]
    by = sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
    watcher = _Watcher(folder, config, arguments, device, precision, evaluators, own, by, console)
    console.line(
        f"watching the checkpoints of {folder} up to step {config.train.steps}, every {arguments.watch_seconds:g} s; "
        "Ctrl-C ends it"
    )
    with where_trained(config, own, folder, console):
        while not watcher.look():
            wait(arguments.watch_seconds)
    console.line(f"step {config.train.steps} is the last one; the scores are in {folder / WATCHED}")
    return 0


@dataclass
class _Watcher:
    """What has been scored, and what it is scored with."""

    folder: Path
    config: Config
    arguments: EvaluateArguments
    device: torch.device
    precision: Precision
    evaluators: Mapping[str, Evaluator]
    own: set[str]
    by: str
    console: Console
    seen: set[tuple[int, str]] = field(default_factory=set)
    """Step and digest of the checkpoints that this watch is done with, scored or not."""
    told: set[str] = field(default_factory=set)
    """Lines that need no telling again."""
    splits: dict[str, EvaluationBatches] | None = None
    """None until the first checkpoint is there, and with it the tokenizer."""
    without: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def look(self) -> bool:
        """Scores the checkpoints that are new, in order of steps; returns whether the last step is done with."""
        written = self.folder / WATCHED
        self.seen |= {(row.step, row.checkpoint) for row in read_watched(written) if row.by == self.by}
        scored = False
        for checkpoint, digest in self._new():
            step = step_of(checkpoint)
            try:
                values = self._scores(checkpoint)
            except UserError as error:
                # Training keeps its last checkpoints only, and may have removed this one while it was read.
                if checkpoint.is_dir() and not isinstance(error, CorruptCheckpointError):
                    raise
                gone = "it was removed before it was read; train.keep_last keeps more"
                self.console.line(f"step {step}: not scored: {error if checkpoint.is_dir() else gone}")
            else:
                add_watched(written, WatchedRow(step, digest, self.by, self.precision.name, values))
                self._show(step, values)
                scored = True
            self.seen.add((step, digest))
        # A report says that a run is done; until there is one, that of the training will show these scores as well.
        if scored and (self.folder / REPORT).is_file():
            self.console.line(f"report: {write_report(self.folder)}")
        return any(step >= self.config.train.steps for step, _ in self.seen)

    def _new(self) -> Iterator[tuple[Path, str]]:
        """The checkpoints that are not done with, and what the weights of each are known by."""
        # A folder with a suffix is being replaced.
        found = [folder for folder in folders(self.folder / CHECKPOINTS) if not folder.suffix]
        for folder in sorted(found, key=step_of):
            try:
                digest = digest_of(folder, scored_group(self.config))
            except CorruptCheckpointError as error:
                if folder.is_dir():
                    self._tell_once(f"step {step_of(folder)}: not scored: {error}")
                    self.seen.add((step_of(folder), ""))
                continue
            except UserError:  # it has gone since the look
                continue
            if (step_of(folder), digest) not in self.seen:
                yield folder, digest

    def _scores(self, checkpoint: Path) -> dict[str, float]:
        """The values of one checkpoint, by ``split/evaluator/name``. Raises UserError."""
        with self.console.activity() as activity:
            run = load_run(str(self.folder), self.device, self.arguments.plugins, checkpoint)
            splits = self.splits if self.splits is not None else self._find(run)
            evaluation = Evaluation.of(
                run,
                self.evaluators,
                self.config.data.max_tokens,
                self.device,
                self.precision,
                tick=activity.update,
                without=self.without,
                tell=self.console.line,
                trained_on=TrainingCaptions(lambda: training_captions(self.config, self.folder)),
            )
            values = evaluation.all_scores(splits)
        for name, batches in splits.items():
            if batches.corrupt:
                self._tell_once(describe_corrupt(name, Unreadable(dict.fromkeys(batches.corrupt))))
        return values

    def _find(self, run: TrainedRun) -> dict[str, EvaluationBatches]:
        """Builds the splits, and tells what they lack. Raises UserError."""
        check_evaluators(self.evaluators, run.model.decoder is not None)
        splits: dict[str, EvaluationBatches] = {}
        for group in ("validation", "test"):
            slot = f"data.{group}"
            nodes = {name: node for name, node in getattr(self.config.data, group).items() if name in self.own}
            of_group = build_splits(self.config, run.tokenizer, nodes, slot)
            found = find_splits(of_group, slot, run.tokenizer, self.evaluators).accepted()
            self.without |= {split: tuple(names) for split, names in found.without.items()}
            remarks = [f"{name}: {line}" for name, batches in of_group.items() for line in batches.remarks()]
            for line in (*found.lines, *remarks):
                self.console.line(line)
            splits |= of_group
        record_figures(self.folder, RunFigures(evaluation=evaluation_figures(self.evaluators)))
        self.splits = splits
        return splits

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        figures = evaluation_figures(self.evaluators)
        for split in self.splits or ():
            of_split = {name.removeprefix(f"{split}/"): v for name, v in values.items() if name.startswith(f"{split}/")}
            shown = ", ".join(f"{name} {of_split[name]:.3f}" for name in shown_in("console", figures, of_split))
            self.console.line(f"step {step}: {split}: {shown or f'{len(of_split)} values'}, in {self.precision.name}")

    def _tell_once(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.console.line(line)
