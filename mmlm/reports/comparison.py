"""Compares several runs: one figure with a curve for each run, and a Markdown table of their scores."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlm.core.errors import UserError
from mmlm.reports.charts import running_mean, thin_out
from mmlm.reports.run_folder import RunFolder, Scores

SCORES = ("image_to_text/R@1", "image_to_text/R@5", "text_to_image/R@5", "captioning/exact", "captioning/CIDEr-D")
"""The scores that are compared on each split, where a run has them."""
SHARES = SCORES[:-1]
"""The scores that are shares of 1, shown in per cent."""
TRAINING = ("train/contrastive", "train/captioning")
"""Training losses that are drawn, where a run has them."""
_PANEL = (3.4, 2.3)
"""Inches of one chart."""


def draw_curves(runs: Mapping[str, RunFolder]) -> Figure:
    """A figure with a row for each split and a last one for the training losses; one colour a run, by name.

    Raises UserError if no run has a metric to draw.
    """
    splits = list(dict.fromkeys(split for run in runs.values() for split in run.metrics.splits))
    known = {name for run in runs.values() for name in run.metrics.series}
    rows = [*([f"{split}/{name}" for name in SCORES] for split in splits), list(TRAINING)]
    rows = [shown for row in rows if (shown := [name for name in row if name in known])]
    if not rows:
        raise UserError("runs: none of them has a metric to draw yet; train longer than train.log_every")
    columns = max(map(len, rows))
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    colors = dict(zip(runs, mpl.color_sequences["tab10"] * (1 + len(runs) // 10), strict=False))
    for row, axes_of_row in zip(rows, grid, strict=True):
        for axes in axes_of_row[len(row) :]:
            axes.set_axis_off()
        for name, axes in zip(row, axes_of_row, strict=False):
            _draw(axes, name, runs, colors)
    lines = [mpl.lines.Line2D([], [], color=color, label=name, linewidth=2) for name, color in colors.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 6), frameon=False)
    return figure


def _draw(axes: Axes, name: str, runs: Mapping[str, RunFolder], colors: Mapping[str, Any]) -> None:
    """Draws the metric ``name`` of every run that has it."""
    factor = 100 if any(name.endswith(share) for share in SHARES) else 1
    for run_name, run in runs.items():
        if name in run.metrics.series:
            series = thin_out(run.metrics.series[name])
            values = running_mean(series.values) if name in TRAINING else series.values
            axes.plot(series.steps, [factor * value for value in values], color=colors[run_name], linewidth=1.6)
            axes.plot(series.steps[-1:], [factor * values[-1]], color=colors[run_name], marker="o", markersize=4)
    axes.set_title(name.removeprefix("train/") + (" (%)" if factor == 100 else ""), fontsize=9, loc="left")
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlim(left=0)


def score_table(runs: Mapping[str, RunFolder]) -> str:
    """Markdown: a table for each split with a row a run, from the last scores; per cent but for CIDEr-D.

    A score that a run does not have is a dash; a score that no run has is left out, and so is the training time of
    runs that do not tell. Raises UserError for a run without scores.
    """
    scores: dict[str, Scores] = {}
    for name, run in runs.items():
        if run.scores is None:
            raise UserError(f"runs: {name} ({run.display_path}) has no scores.json yet; let it end, or leave it out")
        scores[name] = run.scores
    splits = list(dict.fromkeys(split for of_run in scores.values() for split in of_run.splits))
    return "\n\n".join(_split_table(split, runs, scores) for split in splits)


def _split_table(split: str, runs: Mapping[str, RunFolder], all_scores: Mapping[str, Scores]) -> str:
    """The table of one split: a row for each run that was scored on it."""
    values = {name: of_run.splits[split].values for name, of_run in all_scores.items() if split in of_run.splits}
    scores = [score for score in SCORES if any(score in of_run for of_run in values.values())]
    head = [f"`{split}`", *(score.replace("_", " ") for score in scores), "steps", "minutes"]
    lines = [head, ["---"] * len(head)]
    for name, of_run in values.items():
        found = ((of_run.get(score), score in SHARES) for score in scores)
        cells = ["-" if v is None else f"{100 * v:.1f}" if share else f"{v:.2f}" for v, share in found]
        lines.append([name, *cells, f"{all_scores[name].step:,}", f"{runs[name].metrics.seconds / 60:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
