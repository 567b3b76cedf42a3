"""The pictures in the page of a study: curves, scores against compute, two axes, and the same images by every cell."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from mmlm.core.figure import Figure
from mmlm.reports.charts import Line, draw_chart
from mmlm.reports.run_folder import RunFolder, Series
from mmlm.studies.contrast_table import number
from mmlm.studies.drawings import against_compute
from mmlm.studies.record import ScoreArrays, StudyRecord

_IMAGES = 12
"""Images that are shown with every cell's caption."""
_ALIKE = 1.05
"""Where no run has this many times another's FLOPs, compute tells nothing."""

ByCell = Mapping[str, Sequence[RunFolder]]
"""The runs of each cell, by seed."""


def curves(arrays: Sequence[ScoreArrays], by_cell: ByCell, colors: Mapping[str, str]) -> str:
    """The mean of each cell over its seeds, with a band of one standard deviation."""
    figures = {"train/loss": Figure("loss")} | {f"{one.split}/{one.name}": one.figure for one in arrays}
    charts = []
    for name, figure in figures.items():
        series = {cell: [run.metrics.series.get(name) for run in runs] for cell, runs in by_cell.items()}
        lines = [line for cell, of_cell in series.items() if (line := _band(of_cell, colors[cell])) is not None]
        if any(len(line.series.steps) > 1 for line in lines):
            drawn = draw_chart(lines, name, percent=figure.share)
            charts.append(f"<figure><figcaption><b>{escape(name)}</b></figcaption>{drawn}</figure>")
    if not charts:
        return ""
    return (
        '<p class="note">Mean over seeds, and one standard deviation on either side. Losses of unlike objectives do '
        f'not compare.</p>{_legend(colors)}<div class="charts">{"".join(charts)}</div>'
    )


def _band(series: Sequence[Series | None], color: str) -> Line | None:
    """The mean over the runs that have the series, at the steps that all of them have."""
    there = [dict(zip(one.steps, one.values, strict=True)) for one in series if one is not None]
    steps = sorted(set.intersection(*map(set, there))) if there else []
    if not steps:
        return None
    values = np.array([[one[step] for step in steps] for one in there])
    mean = values.mean(axis=0)
    apart = values.std(axis=0, ddof=1) if len(there) > 1 else np.zeros(len(steps))
    low, middle, high = (Series(tuple(steps), tuple(end.tolist())) for end in (mean - apart, mean, mean + apart))
    return Line(middle, color, low=low, high=high)


def _legend(colors: Mapping[str, str]) -> str:
    words = (f'<span><i style="background:var(--{color})"></i>{escape(cell)}</span>' for cell, color in colors.items())
    return f'<p class="legend">{"".join(words)}</p>'


def compute(record: StudyRecord, one: ScoreArrays, colors: Mapping[str, str]) -> str:
    """Every run by its FLOPs; nothing where all have about as many."""
    points: dict[str, list[tuple[float, float]]] = {}
    for run in record.runs:
        value = one.values[one.cells.index(run.cell), one.seeds.index(run.seed)]
        if np.isfinite(value):
            points.setdefault(run.cell, []).append((run.flops, float(value)))
    spent = [flops for of_cell in points.values() for flops, _ in of_cell if flops > 0]
    if not spent or max(spent) < _ALIKE * min(spent):
        return ""
    drawn = against_compute(points, one.figure, colors)
    return f"<h3>{escape(one.split)}: {escape(one.name)}</h3>{_legend(colors)}{drawn}"


def heat(record: StudyRecord, one: ScoreArrays) -> str:
    """The means of a study of two axes as a table with colours; nothing of any other."""
    levels = [record.axes.get(cell, {}) for cell in one.cells]
    names = list(levels[0])
    means = {
        tuple(level.values()): float(values[np.isfinite(values)].mean())
        for level, values in zip(levels, one.values, strict=True)
        if np.isfinite(values).any()
    }
    if len(names) != 2 or not means:
        return ""
    rows, columns = (list(dict.fromkeys(level[name] for level in levels)) for name in names)
    low, high = min(means.values()), max(means.values())

    def cell(value: float | None) -> str:
        if value is None:
            return "<td></td>"
        strength = (value - low) / (high - low) if high > low else 0.5
        share = 12 + 58 * (1 - strength if one.figure.higher_is_better is False else strength)
        tint = f"color-mix(in srgb, var(--series-1) {share:.0f}%, var(--surface))"
        return f'<td style="background:{tint}">{number(value, one.figure)}</td>'

    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{escape(level)}</th>{''.join(cell(means.get((level, column))) for column in columns)}</tr>"
        for level in rows
    )
    title, corner = f"{escape(one.split)}: {escape(one.name)}", f"<th>{escape(' / '.join(names))}</th>"
    return f'<h3>{title}</h3><div class="scroll"><table class="heat"><tr>{corner}{head}</tr>{body}</table></div>'


def captions(by_cell: ByCell) -> str:
    """Images of the first split that has samples, with the caption of each cell's first seed."""
    first = {cell: runs[0] for cell, runs in by_cell.items() if runs}
    splits = dict.fromkeys(split for run in first.values() for split in run.samples)
    if not splits:
        return ""
    split = next(iter(splits))
    examples = {
        cell: {example.id: example for example in run.samples[split].examples}
        for cell, run in first.items()
        if split in run.samples
    }
    shown = []
    for one in list(next(iter(examples.values())).values())[:_IMAGES]:
        said = [
            f"<li{' class=exact' if of_cell[one.id].exact else ''}><span>{escape(cell)}</span>"
            f"{escape(of_cell[one.id].generated or '')}</li>"
            for cell, of_cell in examples.items()
            if one.id in of_cell and of_cell[one.id].generated is not None
        ]
        truth = f"<li><span>true</span>{escape('; '.join(one.captions))}</li>"
        shown.append(f'<figure><img src="{one.image}" alt=""><ul>{truth}{"".join(said)}</ul></figure>')
    return (
        f'<p class="note">Images of {escape(split)}, captioned by the first seed of each cell that has a decoder.</p>'
        f'<div class="captioned">{"".join(shown)}</div>'
    )
