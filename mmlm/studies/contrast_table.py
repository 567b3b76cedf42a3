"""The contrasts of a study as tables: Markdown for a page, LaTeX for a paper."""

import re
from collections.abc import Iterator, Sequence

from mmlm.core.figure import Figure
from mmlm.statistics.contrasts import Contrast
from mmlm.statistics.intervals import Interval
from mmlm.studies.contrasts import Compared

_HEAD = (
    "cell",
    "difference",
    "95%, these items",
    "95%, other items",
    "p",
    "p, other items",
    "can find",
    "correlation",
    "worth seeds",
    "verdict",
)
NOTES = (
    "Difference to the baseline, paired by seed and item; shares in points (per cent).",
    "*These items*: for other seeds on this split. *Other items*: for another split of this kind too.",
    "p: exact sign flips over seeds, of the largest contrast (max-T) among those of the table.",
    "*Can find*: the smallest true difference that so many seeds find in four of five cases, on these items.",
    "*Correlation* of the two cells over seeds, and how many seeds of unpaired cells one paired seed is *worth*.",
)
"""What the columns mean, for under the tables."""


def contrast_tables(compared: Sequence[Compared]) -> Iterator[str]:
    """The lines of a Markdown table for each score, and what the columns mean."""
    for one in compared:
        yield f"**{one.split}: {one.name}**" + (
            f", {len(one.seeds)} seeds" if one.lacking is None else f": no contrast, since {one.lacking}."
        )
        yield ""
        if one.lacking is None:
            yield f"| {' | '.join(_HEAD)} |"
            yield f"| --- |{' --: |' * (len(_HEAD) - 2)} --- |"
            for contrast in one.contrasts:
                yield f"| {' | '.join(row(contrast, one.figure))} |"
            yield ""
    if any(one.lacking is None for one in compared):
        yield from (f"- {note}" for note in NOTES)


def row(contrast: Contrast, figure: Figure) -> list[str]:
    """The cells of the row of a contrast."""
    tested = contrast.no_test is None
    pairs = contrast.pairs
    return [
        contrast.second,
        number(contrast.difference, figure, signed=True),
        interval(contrast.on_items, figure),
        interval(contrast.beyond, figure),
        p_value(contrast.adjusted) if tested else "-",
        p_value(contrast.adjusted_beyond) if tested else "-",
        "-" if contrast.detectable is None else number(contrast.detectable, figure),
        "-" if pairs.correlation is None else f"{pairs.correlation:.2f}",
        "-" if pairs.gain is None else f"{pairs.gain:.1f}",
        contrast.verdict(figure.higher_is_better is not False),
    ]


def latex_table(name: str, compared: Sequence[Compared]) -> str:
    """A table of means and differences for a paper; needs the package ``booktabs``."""
    shown = [one for one in compared if one.lacking is None]
    columns = "l" + "r" * (2 * len(shown))
    heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_latex(f'{one.split}: {one.name}')}}}" for one in shown)
    lines = [
        f"% The study {name}. Mean and standard deviation over seeds; difference to the first row with its 95%",
        "% interval over seeds and items. One asterisk: p of at most 5% among all contrasts of the score; two: on",
        "% other items too.",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"cell & {heads} \\",
        r"\midrule",
    ]
    cells = list(dict.fromkeys(cell for one in shown for cell in _ordered(one)))
    for cell in cells:
        words = [_latex(cell)]
        for one in shown:
            mean = one.means.get(cell)
            contrast = next((c for c in one.contrasts if c.second == cell), None)
            words.append(
                "" if mean is None else rf"${number(mean.mean, one.figure)} \pm {number(mean.deviation, one.figure)}$"
            )
            words.append("" if contrast is None else _latex_difference(contrast, one.figure))
        lines.append(" & ".join(words) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _ordered(one: Compared) -> list[str]:
    """The cells, the baseline first."""
    return [*dict.fromkeys(contrast.first for contrast in one.contrasts), *(c.second for c in one.contrasts)]


def _latex_difference(contrast: Contrast, figure: Figure) -> str:
    stars = "**" if contrast.significant_beyond else "*" if contrast.significant else ""
    low, high = (number(end, figure, signed=True) for end in (contrast.beyond.low, contrast.beyond.high))
    power = f"^{{{stars}}}" if stars else ""
    return f"${number(contrast.difference, figure, signed=True)}{power}$ $[{low}, {high}]$"


def _latex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def number(value: float, figure: Figure, signed: bool = False) -> str:
    """A value of a score: shares in per cent with one digit, others with three."""
    factor, digits = (100, 1) if figure.share else (1, 3)
    return f"{factor * value:{'+' if signed else ''}.{digits}f}"


def interval(found: Interval, figure: Figure) -> str:
    """``[+0.1, +2.3]``."""
    return f"[{number(found.low, figure, signed=True)}, {number(found.high, figure, signed=True)}]"


def p_value(p: float) -> str:
    """Three digits: sign flips of fourteen seeds have no finer p."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"
