"""Compares several runs: one figure with a curve for each run, and a Markdown table of their scores."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, declared, in_order, shown_in
from mmlm.record.figures import RunFigures
from mmlm.reports.charts import running_mean, thin_out
from mmlm.reports.run_folder import RunFolder, Scores

_PANEL = (3.4, 2.3)
"""Inches of one chart."""


def figures_of(runs: Mapping[str, RunFolder]) -> RunFigures:
    """What the figures of several runs are; of a name that several declare, the last run's declaration counts."""
    found = RunFigures()
    for run in runs.values():
        found = run.figures.over(found)
    return found


def _compared(figures: Mapping[str, Figure], names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are declared for comparisons, in order.

    All of them where nothing is declared, as in runs that are older than ``figures.json``.
    """
    known = list(names)
    return shown_in("compare", figures, known) if figures else in_order(figures, known)


def draw_curves(runs: Mapping[str, RunFolder]) -> Drawing:
    """A figure with a row for each split and a last one for the training losses; one colour a run, by name.

    Raises UserError if no run has a metric to draw.
    """
    figures = figures_of(runs)
    splits = dict.fromkeys(split for run in runs.values() for split in run.metrics.splits)
    known = dict.fromkeys(name for run in runs.values() for name in run.metrics.series)
    parts = {**dict.fromkeys(splits, figures.evaluation), "train": figures.training}
    rows = [[f"{part}/{name}" for name in _compared(of_part, _below(known, part))] for part, of_part in parts.items()]
    rows = [row for row in rows if row]
    if not rows:
        raise UserError("runs: none of them has a metric to draw yet; train longer than train.log_every")
    columns = max(map(len, rows))
    drawing = Drawing(figsize=(_PANEL[0] * columns, _PANEL[1] * len(rows) + 0.4), layout="constrained")
    grid = drawing.subplots(len(rows), columns, squeeze=False)
    colors = dict(zip(runs, mpl.color_sequences["tab10"] * (1 + len(runs) // 10), strict=False))
    for row, axes_of_row in zip(rows, grid, strict=True):
        for axes in axes_of_row[len(row) :]:
            axes.set_axis_off()
        for name, axes in zip(row, axes_of_row, strict=False):
            part, _, own_name = name.partition("/")
            _draw(axes, name, declared(parts[part], own_name), runs, colors)
    lines = [mpl.lines.Line2D([], [], color=color, label=name, linewidth=2) for name, color in colors.items()]
    drawing.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 6), frameon=False)
    return drawing


def _below(names: Iterable[str], part: str) -> list[str]:
    """The names below ``part/``, without it."""
    return [name.partition("/")[2] for name in names if name.partition("/")[0] == part]


def _draw(axes: Axes, name: str, figure: Figure, runs: Mapping[str, RunFolder], colors: Mapping[str, Any]) -> None:
    """Draws the values called ``name`` of every run that has them; of a training figure with noise, a running mean."""
    factor = 100 if figure.share else 1
    smooth = name.startswith("train/") and not figure.noiseless
    for run_name, run in runs.items():
        if name in run.metrics.series:
            series = thin_out(run.metrics.series[name])
            values = running_mean(series.values) if smooth else series.values
            axes.plot(series.steps, [factor * value for value in values], color=colors[run_name], linewidth=1.6)
            axes.plot(series.steps[-1:], [factor * values[-1]], color=colors[run_name], marker="o", markersize=4)
    axes.set_title(name.removeprefix("train/") + (" (%)" if figure.share else ""), fontsize=9, loc="left")
    if figure.log_scale:
        axes.set_yscale("log")
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlim(left=0)


def score_table(runs: Mapping[str, RunFolder]) -> str:
    """Markdown: a table for each split with a row a run, from the last scores; shares of 1 are in per cent.

    A score that a run does not have is a dash; a score that no run has is left out, and so is the training time of
    runs that do not tell. Raises UserError for a run without scores.
    """
    scores: dict[str, Scores] = {}
    for name, run in runs.items():
        if run.scores is None:
            raise UserError(f"runs: {name} ({run.display_path}) has no scores.json yet; let it end, or leave it out")
        scores[name] = run.scores
    figures = figures_of(runs).evaluation
    splits = dict.fromkeys(split for of_run in scores.values() for split in of_run.splits)
    return "\n\n".join(_split_table(split, runs, scores, figures) for split in splits)


def _split_table(
    split: str, runs: Mapping[str, RunFolder], all_scores: Mapping[str, Scores], figures: Mapping[str, Figure]
) -> str:
    """The table of one split: a row for each run that was scored on it."""
    values = {name: of_run.splits[split].values for name, of_run in all_scores.items() if split in of_run.splits}
    scores = _compared(figures, dict.fromkeys(score for of_run in values.values() for score in of_run))
    # The precision that scores were taken in can move them alone: it stands in the head, or in each row if it differs.
    taken = {name: all_scores[name].precision or "unknown precision" for name in values}
    same = next(iter(taken.values())) if len(set(taken.values())) == 1 else None
    steps = f"steps, scored in {same}" if same else "steps, scored in ..."
    head = [f"`{split}`", *(_column(score, declared(figures, score)) for score in scores), steps, "minutes"]
    lines = [head, ["---"] * len(head)]
    for name, of_run in values.items():
        found = ((of_run.get(score), declared(figures, score).share) for score in scores)
        cells = ["-" if v is None else f"{100 * v:.1f}" if share else f"{v:.2f}" for v, share in found]
        step = f"{all_scores[name].step:,}" + ("" if same else f" in {taken[name]}")
        lines.append([name, *cells, step, f"{runs[name].metrics.seconds / 60:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _column(name: str, figure: Figure) -> str:
    """The head of a column. Readers take it that more is better, so it is said where it is not."""
    return name.replace("_", " ") + " (less is better)" * (figure.higher_is_better is False)
