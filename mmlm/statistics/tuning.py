"""Were the cells tuned alike? The best learning rate of each, from three or more short runs.

Near its best, the loss is a parabola in the logarithm of the rate. Its lowest point is a ratio of two coefficients, and
gets its interval by Fieller's theorem (Journal of the Royal Statistical Society B, 1954), which is exact and says so
where the runs do not show any lowest point: the interval then has no end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.distributions import NORMAL, student_quantile

FEWEST = 3
"""Rates that a parabola needs."""
SAME_SPAN = 1.01
"""Two spans of rates are equal if neither is wider by more than this factor."""


@dataclass(frozen=True)
class RateFit:
    """The parabola of one cell: ``loss = lowest_loss + bend * log2(rate / best)**2``."""

    rates: tuple[float, ...]
    """Those that were tried, each once, rising."""
    best: float | None
    """The rate of the lowest loss; None if the losses do not bend upwards."""
    low: float | None
    """Lower end of its 95% interval; 0 if there is none; None where three runs leave nothing to tell their noise by."""
    high: float | None
    bend: float
    lowest_loss: float | None

    @property
    def problem(self) -> str | None:
        """Why ``best`` is not to be relied on; None if it lies among the rates that were tried."""
        tried = f"{self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        if self.best is None:
            return f"the loss has no lowest point between {tried}; try rates further apart"
        if not self.rates[0] <= self.best <= self.rates[-1]:
            side = "lower" if self.best < self.rates[0] else "higher"
            return f"the best rate ({self.best:.3g}) lies outside of those tried, {tried}; try {side} ones"
        return None

    def regret(self, rate: float) -> float | None:
        """How much lower the loss would have been at the best rate than at ``rate``; None without a best one."""
        return None if self.best is None else self.bend * math.log2(rate / self.best) ** 2


def fit_rate(rates: Sequence[float], losses: Sequence[float], noise: float | None = None) -> RateFit:
    """The parabola through the losses of short runs at ``rates`` (> 0), of which at least 3 differ (ArgumentError).

    ``noise`` is the standard deviation of a loss from seed to seed, if it is known; else it is told by what the
    parabola leaves over, which takes four runs. A run that diverged has no finite loss, and is to be left out.
    """
    tried = tuple(sorted({float(rate) for rate in rates}))
    if len(rates) != len(losses):
        raise ArgumentError(f"losses: {len(losses)} must be as many as the rates, {len(rates)}")
    if len(tried) < FEWEST:
        raise ArgumentError(f"rates: {len(tried)} different ones must be at least {FEWEST} to find the best of them")
    if min(tried) <= 0 or not np.isfinite([*rates, *losses]).all():
        raise ArgumentError("rates: must be above 0, and their losses finite; leave out runs that diverged")
    x = np.log2(np.array(rates, dtype=np.float64))
    y = np.array(losses, dtype=np.float64)
    middle = float(x.mean())
    design = np.stack([np.ones_like(x), x - middle, (x - middle) ** 2], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    base, slope, bend = (float(one) for one in inverse @ design.T @ y)
    # A bend that is rounding alone is none.
    if bend <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return RateFit(tried, None, None, None, bend, None)
    best = 2.0 ** (middle - slope / (2 * bend))
    low = high = None
    spare = len(y) - 3
    if noise is not None or spare >= 1:
        left = y - design @ np.array([base, slope, bend])
        variance = noise**2 if noise is not None else float(left @ left) / spare
        quantile = NORMAL.inv_cdf(0.975) if noise is not None else student_quantile(0.975, spare)
        low, high = _fieller(slope, bend, inverse * variance * quantile**2, middle)
    return RateFit(tried, best, low, high, bend, base - slope**2 / (4 * bend))


def _fieller(slope: float, bend: float, allowed: np.ndarray, middle: float) -> tuple[float, float]:
    """The rates at which a slope of 0 is not excluded: where ``(slope + 2 bend x)**2`` is at most its allowed error."""
    square = 4 * bend**2 - 4 * allowed[2, 2]
    linear = 4 * slope * bend - 4 * allowed[1, 2]
    constant = slope**2 - allowed[1, 1]
    if square <= 0:
        return 0.0, math.inf
    root = math.sqrt(max(float(linear**2 - 4 * square * constant), 0.0))
    low, high = ((-linear + side * root) / (2 * square) for side in (-1, 1))
    return float(2.0 ** (middle + low)), float(2.0 ** (middle + high))


@dataclass(frozen=True)
class Tuning:
    """How one cell was tuned."""

    fit: RateFit | None
    """None if it was not."""
    rate: float
    """That it was trained with."""

    @property
    def regret(self) -> float | None:
        """By how much a better rate would have lowered its loss; None if that is not known."""
        return None if self.fit is None else self.fit.regret(self.rate)


def why_unequal(cells: Mapping[str, Tuning], largest_regret: float | None = None) -> str | None:
    """Why no verdict on these cells is fair, in one line; None if they were tuned alike.

    Alike are: cells of which none was tuned at all, with one rate for all; and cells with equally many rates over an
    equally wide span, whose best lies among them. ``largest_regret`` is the largest one that does not matter, such as
    the smallest difference that a study finds.
    """
    tuned = {name: cell.fit for name, cell in cells.items() if cell.fit is not None}
    if not tuned:
        rates = {cell.rate for cell in cells.values()}
        return None if len(rates) <= 1 else f"not tuned, and trained at different rates: {_listed(rates)}"
    for name in cells:
        if name not in tuned:
            return f"{name} was not tuned, and {next(iter(tuned))} was"
    most = max(tuned, key=lambda name: len(tuned[name].rates))
    widest = max(tuned, key=lambda name: _span(tuned[name]))
    for name, fit in tuned.items():
        if len(fit.rates) < len(tuned[most].rates):
            return f"{name} was tuned less: {len(fit.rates)} rates against {len(tuned[most].rates)} of {most}"
        if _span(fit) * SAME_SPAN < _span(tuned[widest]):
            wide, wider = f"{_span(fit):.3g}", f"{_span(tuned[widest]):.3g}"
            return f"{name} was tuned less: over a factor of {wide} against {wider} of {widest}"
        if fit.problem is not None:
            return f"{name}: {fit.problem}"
        regret = cells[name].regret
        if largest_regret is not None and regret is not None and regret > largest_regret:
            used = f"{cells[name].rate:.3g}"
            return f"{name} was trained at {used}, which costs {regret:.3g} against its best, {fit.best:.3g}"
    return None


def _span(fit: RateFit) -> float:
    return fit.rates[-1] / fit.rates[0]


def _listed(rates: set[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in sorted(rates))
