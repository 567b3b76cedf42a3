"""Drawings of a study as SVG elements: differences with their intervals, and scores against compute."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from mmlm.core.figure import Figure
from mmlm.statistics.contrasts import Contrast
from mmlm.studies.contrast_table import number

_WIDTH = 720
_NAMES = 190
"""Units that the names of cells have, left of a forest plot."""
_ROW = 30
_AXIS = 34


def forest(contrasts: Sequence[Contrast], figure: Figure) -> str:
    """Each cell's difference to the baseline: a dot, its interval for these items (thick) and for others (thin)."""
    ends = [end for one in contrasts for end in (one.beyond.low, one.beyond.high, one.on_items.low, one.on_items.high)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.06 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return _NAMES + (_WIDTH - _NAMES - 20) * (value - low) / (high - low)

    height = _ROW * len(contrasts) + _AXIS
    bottom = height - _AXIS + 6
    parts = [f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{bottom}" stroke="var(--ink)"/>']
    for mark in _marks(low, high):
        at = f"{x(mark):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 5}" stroke="var(--muted)"/>')
        parts.append(
            f'<text x="{at}" y="{bottom + 20}" text-anchor="middle" fill="var(--muted)">'
            f"{number(mark, figure, signed=mark != 0)}</text>"
        )
    for place, one in enumerate(contrasts):
        y = _ROW * place + _ROW / 2
        found = one.significant_beyond or one.significant
        more_is_better = figure.higher_is_better is not False
        better = (one.difference > 0) == more_is_better
        color = "var(--muted)" if not found else "var(--good)" if better else "var(--bad)"
        told = f"{one.second}: {number(one.difference, figure, signed=True)}; {one.verdict(more_is_better)}"
        parts.append(
            f"<g><title>{escape(told)}</title>"
            f'<text x="0" y="{y + 4}" fill="var(--ink)">{escape(_short(one.second))}</text>'
            f'<line x1="{x(one.beyond.low):.1f}" x2="{x(one.beyond.high):.1f}" y1="{y}" y2="{y}" stroke="{color}"'
            ' stroke-width="1.5"/>'
            f'<line x1="{x(one.on_items.low):.1f}" x2="{x(one.on_items.high):.1f}" y1="{y}" y2="{y}"'
            f' stroke="{color}" stroke-width="5" stroke-opacity="0.55"/>'
            f'<circle cx="{x(one.difference):.1f}" cy="{y}" r="5" fill="{color}"/></g>'
        )
    return _svg("Differences to the baseline", height, parts)


def against_compute(
    points: Mapping[str, Sequence[tuple[float, float]]], figure: Figure, colors: Mapping[str, str]
) -> str:
    """A dot for each run: (FLOPs of training, score) by cell; compute on a logarithmic axis."""
    every = [point for of_cell in points.values() for point in of_cell if point[0] > 0]
    if not every:
        return ""
    left, right = (math.log10(end(x for x, _ in every)) for end in (min, max))
    low, high = (end(y for _, y in every) for end in (min, max))
    pad = 0.08 * ((high - low) or abs(high) or 1.0)
    low, high = low - pad, high + pad
    wide = max(0.1, 0.08 * (right - left))
    left, right, height = left - wide, right + wide, 260

    def at(flops: float, value: float) -> tuple[float, float]:
        across = 60 + (_WIDTH - 80) * (math.log10(flops) - left) / (right - left)
        return across, 10 + (height - 50) * (high - value) / (high - low)

    parts = []
    for mark in _marks(low, high):
        _, y = at(10**left, mark)
        parts.append(f'<line x1="60" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(
            f'<text x="52" y="{y + 4:.1f}" text-anchor="end" fill="var(--muted)">{number(mark, figure)}</text>'
        )
    for place in range(4):
        flops = 10 ** (left + (right - left) * (place + 0.5) / 4)
        x, _ = at(flops, low)
        parts.append(f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle" fill="var(--muted)">{flops:.1e}</text>')
    for cell, of_cell in points.items():
        for flops, value in of_cell:
            if flops > 0:
                x, y = at(flops, value)
                told = f"{cell}: {number(value, figure)} at {flops:.2e} FLOPs"
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--{colors[cell]})" fill-opacity="0.75">'
                    f"<title>{escape(told)}</title></circle>"
                )
    return _svg("Score against FLOPs of training", height, parts)


def _svg(name: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="plain" role="img" aria-label="{escape(name)}" viewBox="0 0 {_WIDTH} {height:g}">'
        f"{''.join(parts)}</svg>"
    )


def _marks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from ``low`` to ``high``."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [step * place for place in range(first, math.floor(high / step) + 1)]


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
