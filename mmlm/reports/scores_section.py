"""The report's section of scores: a table of every split, with the meaning of each figure in plain words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mmlm.core.figure import OTHER, Figure, FigureGroup, declared, in_order, shown_in
from mmlm.reports.run_folder import RunFolder, Scores, SplitScores

SERIES_COLORS = 6
"""Number of colours for splits; a seventh split has the first one's colour again."""


CROWDED = 3
"""With more splits than this, the table takes the layout for many columns."""


def split_colors(run: RunFolder) -> Mapping[str, str]:
    """A colour (name of a CSS variable) for each split in the run's metrics, scores or samples."""
    scored = run.scores.splits if run.scores else ()
    names = dict.fromkeys((*run.metrics.splits, *scored, *run.samples))
    return {name: f"series-{i % SERIES_COLORS + 1}" for i, name in enumerate(names)}


def newest_scores(run: RunFolder) -> Scores | None:
    """``scores.json``, or else the newest evaluation in the metrics, or None when nothing was evaluated yet."""
    if run.scores is not None or not run.metrics.splits:
        return run.scores
    found: dict[str, dict[str, float]] = {name: {} for name in run.metrics.splits}
    step = max(series.steps[-1] for name, series in run.metrics.series.items() if not name.startswith("train/"))
    for name, series in run.metrics.series.items():
        split, _, metric = name.partition("/")
        if split in found and series.steps[-1] == step:
            found[split][metric] = series.last
    return Scores(step, {name: SplitScores(values) for name, values in found.items() if values})


NEGLIGIBLE = 1e-8
"""Scores below this are shown as 0: BLEU without a match is about 1e-10, as in the reference implementation."""


def format_value(value: float | None, share: bool = False) -> str:
    """A score for a table: 52.3%, 0.381, 1,234; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if share:
        return f"{100 * value:.1f}%"
    size = abs(value)
    if size >= 100 or size == 0:
        return f"{value:,.0f}"
    if size < NEGLIGIBLE:
        return "0"
    return f"{value:.2g}" if size < 0.001 else f"{value:.3f}" if size < 1 else f"{value:.2f}"


def headline(scores: Scores, figures: Mapping[str, Figure]) -> str:
    """One sentence (HTML) on the first split: what an audience should remember. Empty without such scores.

    It is made of the clauses that the evaluators declare. Each counts the images that its figure was taken over: a
    split may have images without a caption, or without one in the language that is scored.
    """
    name, split = next(iter(scores.splits.items()), ("", SplitScores({})))
    values = {key: value for key, value in split.values.items() if math.isfinite(value)}
    clauses = {key: declared(figures, key).headline for key in in_order(figures, values)}
    said: list[str] = []
    before = split.images
    for key, text in clauses.items():
        if text:
            said.append(_clause(text, declared(figures, key), values[key], split, before))
            before = _count(declared(figures, key).count, split) or split.images
    several = ", and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]]))
    return f"On <b>{escape(name)}</b>, {several}." if said else ""


def _count(name: str, split: SplitScores) -> int | None:
    """The number of items under ``name``, if the split has it."""
    value = split.values.get(name)
    return round(value) if value is not None and math.isfinite(value) else None


def _clause(text: str, figure: Figure, value: float, split: SplitScores, before: int | None) -> str:
    """A declared clause as HTML. Only these words in braces are replaced, for whoever wrote the run wrote the text.

    ``before`` is the number of images that the clause before is about.
    """
    shown = f"{100 * value:.0f}%" if figure.share else format_value(value)
    images, captions = _count(figure.count, split) or split.images, _count(figure.among, split) or split.captions
    words = {
        "{value}": f"<b>{shown}</b>",
        "{images}": f"{images:,} images" if images else "the images",
        "{of_images}": f" of {images:,} images" if images and images != before else "",
        "{of_captions}": f" of {captions:,}" if captions else "",
    }
    html = escape(text)
    for word, said in words.items():
        html = html.replace(word, said)
    return html


@dataclass(frozen=True)
class Other:
    """Another run, whose scores stand beside those of the report's own."""

    name: str
    scores: Scores


def scores_table(
    scores: Scores, colors: Mapping[str, str], figures: Mapping[str, Figure], other: Other | None = None
) -> str:
    """The table of the main scores, a row a figure with its meaning and a column a split, and a fold of all scores.

    Each value has its level of chance and its interval, as far as they are known, and the value of ``other``.
    """
    head = "".join(_split_heading(name, split) for name, split in scores.splits.items())
    groups: dict[FigureGroup, list[str]] = {}
    for key in shown_in("table", figures, _names(scores)):
        groups.setdefault(declared(figures, key).group, []).append(key)
    ordered = sorted(groups, key=lambda group: group == OTHER)  # stable: what belongs nowhere comes last
    body = "".join(_group_rows(group, groups[group], scores, colors, figures, other) for group in ordered)
    # Next to many columns there is no room for the meaning of a figure: it goes below the name.
    crowded = " crowded" if len(scores.splits) > CROWDED else ""
    taken = f", in {escape(scores.precision)}" if scores.precision else ""
    return (
        f'<div class="scroll"><table class="scores{crowded}"><thead><tr><th scope="col"><span class="note">at step '
        f"{scores.step:,}{taken}</span></th>{head}</tr></thead>{body}</table></div>{_all_scores(scores)}"
    )


def _names(scores: Scores) -> list[str]:
    """Every score of any split, in order of appearance."""
    return list(dict.fromkeys(name for split in scores.splits.values() for name in split.values))


def _split_heading(name: str, split: SplitScores) -> str:
    counts = ((split.images, "images"), (split.captions, "captions"))
    small = "".join(f"<small>{count:,} {what}</small>" for count, what in counts if count)
    unseen = f'<small class="unseen">{escape(split.description)}</small>' if split.description else ""
    return f'<th scope="col"><b>{escape(name)}</b>{unseen}{small}</th>'


def _group_rows(
    group: FigureGroup,
    keys: Sequence[str],
    scores: Scores,
    colors: Mapping[str, str],
    figures: Mapping[str, Figure],
    other: Other | None,
) -> str:
    columns = len(scores.splits) + 1
    rows = []
    for key in keys:
        figure = declared(figures, key)
        cells = (
            _score_cell(key, figure, split, colors[name], other, other.scores.splits.get(name) if other else None)
            for name, split in scores.splits.items()
        )
        rows.append(
            f'<tr><th scope="row"><div><span class="metric">{escape(figure.name)}</span>'
            f'<span class="meaning">{escape(figure.meaning)}</span></div></th>{"".join(cells)}</tr>'
        )
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{columns}"><p><b>{escape(group.name)}</b>'
        f"{escape(group.question)}</p></th></tr>{''.join(rows)}</tbody>"
    )


def _score_cell(
    key: str, figure: Figure, split: SplitScores, color: str, other: Other | None, others: SplitScores | None
) -> str:
    """A value with all that stands below it; ``others`` are the scores of the ``other`` run on the same split."""
    value, extra = split.values.get(key), ""
    known = value is not None and math.isfinite(value)
    if figure.share and value is not None and known:
        width = 100 * min(max(value, 0.0), 1.0)
        extra = f'<span class="share"><i style="width:{width:.1f}%;background:var(--{color})"></i></span>'
    chance = split.values.get(figure.chance) if isinstance(figure.chance, str) else figure.chance
    if known and chance is not None:
        extra += f"<small>chance {format_value(chance, figure.share)}</small>"
    low, high = split.values.get(figure.low), split.values.get(figure.high)
    if low is not None and high is not None:
        extra += f"<small>{_interval(low, high, figure.share)}</small>{_doubt(figure, low, high, chance)}"
    if other is not None and others is not None and key in others.values:
        extra += _against(value if known else None, others.values[key], figure, other.name)
    return f"<td>{format_value(value, figure.share)}{extra}</td>"


def _against(value: float | None, others: float, figure: Figure, name: str) -> str:
    """The value of the other run and, if both are known, by how much this one is higher."""
    said = f"{escape(name)} {format_value(others, figure.share)}"
    if value is None or not math.isfinite(others):
        return f'<small class="other">{said}</small>'
    difference = round(100 * (value - others), 1) if figure.share else round(value - others, 3)
    better = figure.higher_is_better is not None and difference != 0 and (difference > 0) == figure.higher_is_better
    worse = figure.higher_is_better is not None and difference != 0 and not better
    shown = f"{difference:+.1f}" if figure.share else f"{difference:+.3f}"
    kind = " better" if better else " worse" if worse else ""
    return f'<small class="other">{said} <span class="difference{kind}">{shown}</span></small>'


def _interval(low: float, high: float, share: bool) -> str:
    """``0.400 to 0.600``: both ends with equally many digits, unless those would all be zeros."""
    if share:
        return f"{100 * low:.1f} to {100 * high:.1f}%"
    if 0 < max(abs(low), abs(high)) < 0.001:
        return f"{format_value(low)} to {format_value(high)}"
    digits = 2 if max(abs(low), abs(high)) >= 1 else 3
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _doubt(figure: Figure, low: float, high: float, chance: float | None) -> str:
    """A warning if the interval does not lie beyond the level of a model that knows nothing."""
    if chance is None or figure.higher_is_better is None:
        return ""
    beyond, side = (low > chance, "above") if figure.higher_is_better else (high < chance, "below")
    return "" if beyond else f'<span class="warning">not {side} {format_value(chance, figure.share)}</span>'


def _all_scores(scores: Scores) -> str:
    head = "".join(f"<td><b>{escape(name)}</b></td>" for name in scores.splits)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{format_value(split.values.get(name))}</td>" for split in scores.splits.values())
        + "</tr>"
        for name in _names(scores)
    )
    return (
        '<details class="more"><summary>Every score</summary><div class="scroll"><table class="plain">'
        f"<tr><th></th>{head}</tr>{rows}</table></div></details>"
    )
