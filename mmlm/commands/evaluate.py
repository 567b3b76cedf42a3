"""Scores a trained run on its splits, and adds the scores to its report."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from mmlm.cli.arguments import EvaluateArguments
from mmlm.cli.hydra_config import evaluators_of
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, declared, in_order
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.evaluation.evaluate import Evaluation, evaluation_figures
from mmlm.evaluation.requires import SplitFindings
from mmlm.experiment.build import build_evaluators, build_splits
from mmlm.experiment.compatibility import check_evaluators
from mmlm.experiment.config import Config
from mmlm.experiment.config_file import config_text, parse_config
from mmlm.experiment.device import choose_device
from mmlm.experiment.experiment import find_splits
from mmlm.experiment.saved_run import load_run
from mmlm.record.console import Console
from mmlm.record.figures import RunFigures, record_figures
from mmlm.reports.page import write_report
from mmlm.training.messages import describe_corrupt

COUNTS = ("images", "captions")
"""What ``Evaluation.write`` returns of a split besides the values of its evaluators."""


def evaluate_run(arguments: EvaluateArguments) -> int:
    """Evaluates the splits, prints a table of the scores and rewrites the report; returns the exit status."""
    device = choose_device(arguments.device)
    run = load_run(arguments.run, device, arguments.plugins)
    config = _with_evaluators(run.config, arguments)
    evaluators = build_evaluators(config)
    check_evaluators(evaluators, run.model.decoder is not None)
    chosen = _choose(config, arguments.splits)
    splits: dict[str, EvaluationBatches] = {}
    findings: list[SplitFindings] = []
    for group in ("validation", "test"):
        nodes = {name: node for name, node in getattr(config.data, group).items() if name in chosen}
        of_group = build_splits(config, run.tokenizer, nodes, f"data.{group}")
        findings.append(find_splits(of_group, f"data.{group}", run.tokenizer, evaluators).accepted())
        splits |= of_group
    console = Console()
    for line in chain.from_iterable(found.lines for found in findings):
        console.line(line)
    figures = evaluation_figures(evaluators)
    record_figures(run.folder, RunFigures(evaluation=figures))
    without = {split: names for found in findings for split, names in found.without.items()}
    evaluation = Evaluation.of(
        run, evaluators, config.data.max_tokens, device, arguments.precision, without=without, tell=console.line
    )
    scores = evaluation.write(run.folder, run.step, splits, config.samples, config.data.language)
    console.line(f"{run.folder} at step {run.step}, scored in {evaluation.precision}")
    for name, batches in splits.items():
        if batches.corrupt:
            console.line(describe_corrupt(name, batches.corrupt))
    for line in _table(scores, figures):
        console.line(line)
    console.line(f"report: {write_report(run.folder)}")
    return 0


def _with_evaluators(config: Config, arguments: EvaluateArguments) -> Config:
    """The run's config with the evaluators that the command asks for. Raises UserError."""
    if arguments.evaluators is None:
        return config
    changed = replace(config, evaluators=evaluators_of(arguments.evaluators))
    # Read again as a config is: nodes may refer to other keys (``${data.language}``), and their arguments are checked.
    return parse_config(config_text(changed), f"evaluators={arguments.evaluators}")


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


def _table(scores: Mapping[str, Mapping[str, float]], figures: Mapping[str, Figure]) -> list[str]:
    """One line a value, one column a split; shares of 1 are in per cent. The counts of the split come first."""
    known = list(dict.fromkeys(key for values in scores.values() for key in values))
    names = [*(name for name in known if name in COUNTS), *in_order(figures, [n for n in known if n not in COUNTS])]
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{split:>15}" for split in scores)]
    for name in names:
        cells = (_cell(values.get(name), declared(figures, name)) for values in scores.values())
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def _cell(value: float | None, figure: Figure) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if figure.share else f"{value:.4g}"
