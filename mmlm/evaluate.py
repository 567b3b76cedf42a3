"""``python -m mmlm.evaluate run=DIR``: scores of a trained run on its splits, added to its report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmlm.cli.exits import report_user_errors
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.evaluation.evaluate import Evaluation
from mmlm.experiment.build import build_evaluators, build_splits
from mmlm.experiment.config import Config
from mmlm.experiment.device import choose_device
from mmlm.experiment.saved_run import load_run
from mmlm.record.console import Console
from mmlm.record.environment import precision_of_run
from mmlm.reports.page import write_report
from mmlm.training.messages import describe_corrupt


@dataclass
class EvaluateSettings:
    """Score a trained run on its splits and bring its scores.json, samples.json and report.html up to date."""

    run: str = "???"
    """Run folder, or a folder with a single run below it."""
    splits: list[str] = field(default_factory=lambda: ["validation"])
    """Split names of the run's config; validation and test stand for all of that group."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Precision | None = None
    """auto, fp32, bf16 or fp16; null takes what the run was trained in."""


def main(argv: list[str]) -> int:
    """Evaluates the splits, prints a table of the scores and rewrites the report; returns the exit status."""
    settings, _ = parse_key_values(argv, EvaluateSettings)
    device = choose_device(settings.device)
    run = load_run(settings.run, device)
    config = run.config
    precision = settings.precision or precision_of_run(config.train.precision, run.folder, device)
    chosen = _choose(config, settings.splits)
    splits = {
        name: batches
        for group in ("validation", "test")
        for name, batches in build_splits(
            config,
            run.tokenizer,
            {k: v for k, v in getattr(config.data, group).items() if k in chosen},
            f"data.{group}",
        ).items()
    }
    evaluation = Evaluation.of(run, build_evaluators(config), config.data.max_tokens, device, precision)
    scores = evaluation.write(run.folder, run.step, splits, config.samples, config.data.language)
    console = Console()
    console.line(f"{run.folder} at step {run.step}")
    for name, batches in splits.items():
        if batches.corrupt:
            console.line(describe_corrupt(name, batches.corrupt))
    for line in _table(scores):
        console.line(line)
    console.line(f"report: {write_report(run.folder)}")
    return 0


def _choose(config: Config, names: list[str]) -> set[str]:
    """The splits that ``names`` stand for, each the name of a split or of a group. Raises UserError."""
    groups = {"validation": list(config.data.validation), "test": list(config.data.test)}
    # For messages: a group without splits is nothing to choose, and a split may have the name of its group.
    known = list(dict.fromkeys([*filter(groups.get, groups), *(name for group in groups.values() for name in group)]))
    chosen: set[str] = set()
    for name in names:
        if name not in known and name not in groups:
            raise UserError(f"splits: '{name}' is no split of this run; there are: {', '.join(known)}")
        chosen |= set(groups.get(name, [name]))
    if not chosen:
        raise UserError(f"splits: {', '.join(names) or '[]'} holds no split of this run; there are: {', '.join(known)}")
    return chosen


def _table(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line a value, one column a split."""
    names = list(dict.fromkeys(key for values in scores.values() for key in values))
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{split:>15}" for split in scores)]
    for name in names:
        cells = (values.get(name) for values in scores.values())
        lines.append(f"{name:<{width}}" + "".join(f"{'-' if v is None else f'{v:.4g}':>15}" for v in cells))
    return lines


if __name__ == "__main__":
    report_user_errors(main)
