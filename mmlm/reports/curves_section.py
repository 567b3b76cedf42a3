"""The report's section of curves: losses, validation scores, diagnoses, and figures such as the learning rate."""

import json
from collections.abc import Collection, Mapping, Sequence
from html import escape

from mmlm.core.figure import LOSS, OTHER, TOTAL, WEIGHTED, Figure, FigureGroup, declared, family_of, shown_in
from mmlm.record.figures import RunFigures
from mmlm.reports.charts import Line, curve_data, draw_chart
from mmlm.reports.run_folder import Metrics, Series
from mmlm.reports.scores_section import SERIES_COLORS, format_value


def curves(metrics: Metrics, colors: Mapping[str, str], figures: RunFigures) -> str:
    """Small charts over steps: the loss and its terms, validation scores, then every other group of training figures.

    Training figures of no group stand at the end. In a group, charts are in the order of the declarations; those of
    figures without noise, which are settings rather than results, come first.
    """
    training = {n.removeprefix("train/"): one for n, one in metrics.series.items() if n.startswith("train/")}
    scores = dict.fromkeys(n.partition("/")[2] for n in metrics.series if n.partition("/")[0] in metrics.splits)
    # The scores that are drawn into the chart of a training figure have none of their own.
    beside = {name: declared(figures.evaluation, name).beside for name in scores}
    beside = {name: chart for name, chart in beside.items() if chart in training}
    groups: dict[FigureGroup, list[str]] = {LOSS: []}
    for name in _charts_of(training, figures.training):
        groups.setdefault(declared(figures.training, name).group, []).append(name)
    drawn = {
        group: [
            _training_chart(
                name,
                training,
                figures.training,
                _split_lines([score for score, chart in beside.items() if chart == name], metrics, colors, figures),
            )
            for name in names
        ]
        for group, names in groups.items()
    }
    losses = [name for name in groups[LOSS] if name != TOTAL]
    if any(f"{name}/{WEIGHTED}" in training for name in losses):
        drawn[LOSS].append(_weighted_chart(losses, training))
    validation = [
        _validation_chart(name, metrics, colors, figures)
        for name in shown_in("chart", figures.evaluation, scores)
        if name not in beside
    ]
    others = [group for group in drawn if group not in (LOSS, OTHER)]
    return "".join(
        (
            _block(LOSS.name, drawn[LOSS]),
            _block("Validation", validation),
            *(_block(group.name, drawn[group], group.question) for group in others),
            _block("Training", drawn.get(OTHER, []), small=True),
        )
    )


def _charts_of(names: Collection[str], figures: Mapping[str, Figure]) -> list[str]:
    """The figures that have a chart, in its place; the lines of a family share that of the family."""
    charts = dict.fromkeys(family_of(figures, name) or name for name in names)
    return sorted(shown_in("chart", figures, charts), key=lambda name: not declared(figures, name).noiseless)


def _block(title: str, charts: Sequence[str], note: str = "", small: bool = False) -> str:
    if not any(charts):
        return ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<h3>{escape(title)}</h3>{said}<div class="charts{" small" * small}">{"".join(charts)}</div>'


def _training_chart(
    name: str, training: Mapping[str, Series], figures: Mapping[str, Figure], splits: Mapping[str, Line]
) -> str:
    """The chart of a training figure, with a line for each split (``splits``) that has a score beside it."""
    figure = declared(figures, name)
    smooth = not figure.noiseless
    if figure.family:
        mine = [one for one in training if one == name or family_of(figures, one) == name]
        series = {one[len(name) + 1 :].replace("_", " ") or figure.name: training[one] for one in mine}
        lines = _lines(series, smooth)
    else:
        line = Line(training[name], "ink", smooth)
        lines = {"train": line, **splits} if splits or figure.group == LOSS else {"": line}
    kind = f"training: {name}, " if figure.group == OTHER else f"{figure.group.name.lower()}: "
    return _chart(figure, lines, kind)


def _weighted_chart(names: Sequence[str], training: Mapping[str, Series]) -> str:
    """The chart of what each term adds to the total. A term of weight 1 is not logged a second time as weighted."""
    series = {name: training.get(f"{name}/{WEIGHTED}", training[name]) for name in names}
    return _chart(Figure("what each adds to the total"), _lines(series, smooth=True), "loss: ")


def _lines(series: Mapping[str, Series], smooth: bool) -> dict[str, Line]:
    """A line for each name, in a colour of its own."""
    return {
        name: Line(one, f"series-{number % SERIES_COLORS + 1}", smooth)
        for number, (name, one) in enumerate(series.items())
    }


def _validation_chart(name: str, metrics: Metrics, colors: Mapping[str, str], figures: RunFigures) -> str:
    return _chart(declared(figures.evaluation, name), _split_lines([name], metrics, colors, figures), "validation: ")


def _split_lines(
    names: Sequence[str], metrics: Metrics, colors: Mapping[str, str], figures: RunFigures
) -> dict[str, Line]:
    """A line for each split that has the score, with the band of its interval; of several scores, the name is told."""
    lines = {}
    for name in names:
        figure = declared(figures.evaluation, name)
        for split in metrics.splits:
            series = metrics.series.get(f"{split}/{name}")
            if series is not None:
                low, high = (metrics.series.get(f"{split}/{end}") for end in (figure.low, figure.high))
                label = split if len(names) == 1 else f"{split}, {figure.heading}"
                lines[label] = Line(series, colors[split], low=low, high=high)
    return lines


def _chart(figure: Figure, lines: Mapping[str, Line], kind: str) -> str:
    """A chart with its heading and legend; ``kind`` keeps its ids apart from those of other charts."""
    if not lines:
        return ""
    title = figure.heading
    drawing = draw_chart(tuple(lines.values()), kind + title, figure.share, figure.log_scale)
    legend = _legend(lines, figure.share)
    meaning = f' title="{escape(figure.meaning)}"' if figure.meaning else ""
    data = escape(json.dumps(curve_data(lines, figure.share)))
    return (
        f'<figure><figcaption><b{meaning}>{escape(title)}</b><div class="legend">{legend}</div></figcaption>'
        f'<div class="plot" data-curves="{data}">{drawing}</div></figure>'
    )


def _legend(lines: Mapping[str, Line], percent: bool) -> str:
    several: Sequence[str] = tuple(lines) if len(lines) > 1 or "" not in lines else ()
    if not several:
        return f"<span>now <b>{format_value(lines[''].drawn()[0].last, percent)}</b></span>"
    return "".join(
        f'<span><i style="background:var(--{lines[name].color})"></i>{escape(name)} '
        f"<b>{format_value(lines[name].drawn()[0].last, percent)}</b></span>"
        for name in several
    )
