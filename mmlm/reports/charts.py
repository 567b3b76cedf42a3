"""Line charts and heat maps, as SVG and PNG to be put inside a page.

matplotlib draws the SVG without pyplot (no window, no list of open figures). Then text is left to the page's own font
and every colour becomes a CSS variable of the page, so that one drawing serves light and dark.
"""

import base64
import html
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmlm.reports.run_folder import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

WIDTH, HEIGHT = 350, 176
"""Size of a chart in SVG units: pixels, if a column of the page is that wide."""

MAX_POINTS = 240
"""A longer series is drawn as the means of this many stretches: more points would be less than two pixels apart."""

PLOT_LEFT, PLOT_WIDTH = 0.115, 0.865
"""Where the axis of steps begins, and its length, as shares of a chart's width."""

SMOOTH_FROM = 40
"""A training series of fewer points than this is drawn without a running mean."""

_VARIABLES = ("ink", "muted", "line", *(f"series-{i}" for i in range(1, 7)))
# matplotlib accepts real colours only. Each CSS variable has one that nothing else is drawn in, so that it can be
# replaced in the finished SVG.
_STAND_INS = {name: f"#0a0b{i:02x}" for i, name in enumerate(_VARIABLES, start=1)}
# Coordinates are cut to a hundredth of a pixel.
_DIGITS = re.compile(r"(\.\d{2})\d+")
_SVG_SETTINGS: dict[str, Any] = {"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10}


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    series: Series
    color: str
    """Name of a CSS variable: ``ink`` or ``series-1`` to ``series-6``."""
    smooth: bool = False
    """Draw the values faintly and their running mean over them."""
    low: Series | None = None
    high: Series | None = None
    """Bounds of a shaded band around the curve, at the same steps."""

    def drawn(self) -> tuple[Series, Series | None]:
        """The series to draw strongly and, if that is a running mean, the one to draw faintly under it (else None)."""
        series = thin_out(self.series)
        if not self.smooth or len(series.values) < SMOOTH_FROM:
            return series, None
        return Series(series.steps, tuple(running_mean(series.values))), series


def draw_chart(lines: Sequence[Line], name: str, percent: bool = False, log: bool = False) -> str:
    """One chart over optimizer steps as an ``<svg>`` element.

    ``name`` is read out by screen readers, and keeps the ids of charts on one page apart. With ``percent`` the values
    are shares of 1 and the axis is in per cent. With ``log`` the axis is logarithmic, and values not above 0 are left
    out.
    """
    # matplotlib is imported where something is drawn: a training draws at its end, and on its first rank only.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = _SVG_SETTINGS | {"svg.hashsalt": name}  # rc_context is annotated with every key of matplotlib
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_axes((PLOT_LEFT, 0.135, PLOT_WIDTH, 0.82))
        _style_axes(axes, percent)
        for line in lines:
            _draw_line(axes, line)
        _limit_axes(axes, lines, log)
        drawn = io.StringIO()
        canvas.print_svg(drawn, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _to_inline_svg(drawn.getvalue(), name)


def curve_data(lines: Mapping[str, Line], percent: bool) -> dict[str, Any]:
    """What the page's script tells of a chart when somebody points at it: the points of each strong line, and the axis.

    ``left`` and ``width`` are shares of the chart's width; the axis goes from step ``from`` over ``until`` steps.
    Values have 5 digits; one that is not finite is None.
    """
    low, high = _step_limits(tuple(lines.values()))
    drawn = {name: line.drawn()[0] for name, line in lines.items()}
    return {
        "left": PLOT_LEFT,
        "width": PLOT_WIDTH,
        "from": low,
        "until": high - low,
        "percent": percent,
        "lines": [
            {
                "name": name,
                "color": lines[name].color,
                "steps": list(series.steps),
                "values": [float(f"{value:.5g}") if math.isfinite(value) else None for value in series.values],
            }
            for name, series in drawn.items()
        ],
    }


def compact_number(value: float) -> str:
    """A short number for an axis: 1.5k, 20M, 11.85, 0.002, 1e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over a twentieth of the series, over finite values only; nan where none is finite.

    At the start the window narrows and stays centred, so that a steep start is not flattened; at the end the window is
    cut off, and so reaches further back than forward.
    """
    half = max(1, len(values) // 40)
    stretches = (values[max(0, i - half) : i + min(half, i) + 1] for i in range(len(values)))
    finite = ([value for value in stretch if math.isfinite(value)] for stretch in stretches)
    return [sum(stretch) / len(stretch) if stretch else math.nan for stretch in finite]


def thin_out(series: Series, points: int = MAX_POINTS) -> Series:
    """At most ``points`` points: the mean of each stretch, at the stretch's last step. The last point stays exact."""
    count = len(series.steps)
    if count <= points:
        return series
    edges = [round(i * (count - 1) / (points - 1)) for i in range(points)]
    values = np.where(np.isfinite(series.values), series.values, np.nan)
    means = [float(values[a:b].mean()) for a, b in itertools.pairwise(edges)]
    steps = [series.steps[b - 1] for b in edges[1:]]
    return Series((*steps, series.steps[-1]), (*means, series.values[-1]))


def heat_map(weights: Sequence[float], grid: tuple[int, int], full: float) -> str:
    """An attention map as the ``data:`` URI of a tiny PNG, one pixel a patch, to be stretched over its image.

    ``weights`` are those of the patches of ``grid`` (rows, columns), row by row; they are divided by their sum first. A
    patch is transparent up to an even share of the attention and opaque at ``full`` times that share, so that uniform
    attention shows no colour at all.
    """
    shares = np.nan_to_num(np.asarray(weights, dtype=np.float64).reshape(grid), posinf=0, neginf=0).clip(min=0)
    shares = shares * shares.size / max(shares.sum(), 1e-12)
    strength = ((shares - 1) / (full - 1)).clip(0, 1)
    cool, warm = np.array([255.0, 196.0, 0.0]), np.array([222.0, 22.0, 78.0])
    pixels = np.empty((*grid, 4), dtype=np.uint8)
    pixels[..., :3] = cool + (warm - cool) * strength[..., None]
    pixels[..., 3] = 225 * strength**0.7
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def peak_share(maps: Sequence[Sequence[float]]) -> float:
    """The weight of the strongest patch over all maps, as a multiple of an even share; at least 2."""
    peaks = (max(weights) * len(weights) / sum(weights) for weights in maps if weights and sum(weights) > 0)
    return max([2.0, *(peak for peak in peaks if math.isfinite(peak))])


def _style_axes(axes: "Axes", percent: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor("none")
    axes.figure.set_facecolor("none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_STAND_INS["line"])
    axes.grid(axis="y", color=_STAND_INS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_STAND_INS["muted"], pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact_number(value)))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:.4g}%" if percent else compact_number(value))
    )


def _draw_line(axes: "Axes", line: Line) -> None:
    color = _STAND_INS[line.color]
    strong, faint = line.drawn()
    if line.low and line.high:
        low, high = thin_out(line.low), thin_out(line.high)
        axes.fill_between(low.steps, low.values, high.values, color=color, alpha=0.14, linewidth=0)
    if faint:
        axes.plot(faint.steps, faint.values, color=color, alpha=0.28, linewidth=0.8)
    axes.plot(strong.steps, strong.values, color=color, linewidth=1.8, solid_capstyle="round")
    # The end, or a run's only point, is where the eye goes.
    axes.plot(
        strong.steps[-1:], strong.values[-1:], color=color, marker="o", markersize=4.5, markeredgewidth=0, clip_on=False
    )


def _step_limits(lines: Sequence[Line]) -> tuple[float, float]:
    """The first and last step of the axis."""
    steps = [step for line in lines for step in line.series.steps]
    return min([0, *steps]), max([1, *steps]) * 1.02


def _limit_axes(axes: "Axes", lines: Sequence[Line], log: bool) -> None:
    """Limits both axes to finite values. The highest half per cent of a long curve (its first steps) may be cut off."""
    drawn = [series for line in lines for series in (line.series, line.low, line.high) if series]
    values = np.array([value for series in drawn for value in series.values if math.isfinite(value)])
    values = values[values > 0] if log else values
    axes.set_xlim(*_step_limits(lines))
    if values.size and log:
        _limit_log_axis(axes, float(values.min()), float(values.max()))
    elif values.size:
        low, high = float(values.min()), float(np.quantile(values, 0.995)) if values.size > 100 else float(values.max())
        # The axis begins at 0 if that costs the curve at most about a third of the height.
        low = min(low, 0.0) if low <= 0.35 * high else low
        margin = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
        axes.set_ylim(low - (margin if low else 0), high + margin)


def _limit_log_axis(axes: "Axes", low: float, high: float) -> None:
    """A logarithmic axis from ``low`` to ``high`` (above 0) with about four marks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    decades = math.log10(high / low)
    margin = 10 ** max(0.08 * decades, 0.04)
    axes.set_ylim(low / margin, high * margin)
    marks: Locator = MaxNLocator(4)
    if decades > 0.7:
        marks = LogLocator(subs=(1, 2, 5)) if decades < 1.5 else LogLocator(numticks=5)
    axes.yaxis.set_major_locator(marks)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact_number(value)))


def _to_inline_svg(drawn: str, name: str) -> str:
    """matplotlib's SVG file as an element of the page: no header, no styles of its own, CSS variables for colours."""
    svg = drawn[drawn.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Every chart numbers its groups in the same way, so ids would clash on a page. Those that something refers to stay:
    # they are made from ``svg.hashsalt`` and differ.
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for variable, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    svg = re.sub(r'(?<= )(?:d|x|y|transform)="[^"]*"', lambda found: _DIGITS.sub(r"\1", found[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    head = f'<svg class="chart" role="img" aria-label="{html.escape(name)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, svg).strip()
