"""Where two recipes change places: one is better with little compute, the other with much.

Contrastive and captioning objectives do (arXiv:2506.04598), so that a table at one size may say the opposite of
another.
"""

import math
from dataclasses import dataclass

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Floats
from mmlm.statistics.intervals import Interval
from mmlm.statistics.scaling import RESAMPLES, Ladder, Laws, fit_ladder

POINTS = 400
"""Places that are looked at between the smallest compute and the largest."""
BEYOND = 10.0
"""Laws are followed to so many times the largest compute that was run."""


@dataclass(frozen=True)
class Crossing:
    """How the second of two recipes stands to the first as compute grows."""

    compute: Floats
    """float64[Q], FLOPs, rising, from the smallest to ten times the largest of the ladder."""
    second_better: Floats
    """float64[Q]: how probable it is that the second has the lower loss there."""
    at: float | None
    """FLOPs at which the fitted laws cross, the last time if there are several; None if they do not."""
    interval: Interval | None
    """95%, of the resamples that cross; None if fewer than half do."""
    probability: float
    """How probable a crossing is within ``compute``."""

    def better_at(self, compute: float) -> float:
        """How probable it is that the second recipe is better at ``compute`` FLOPs."""
        return float(np.interp(math.log(compute), np.log(self.compute), self.second_better))

    def near(self, compute: float, factor: float = 3.0) -> bool:
        """Whether a comparison at ``compute`` alone says little: a crossing may be there or within ``factor``."""
        if self.interval is not None and self.interval.low / factor <= compute <= self.interval.high * factor:
            return True
        return self.at is not None and self.at / factor <= compute <= self.at * factor

    def in_words(self, first: str, second: str) -> str:
        """``above 10^14.2 FLOPs joint is better with probability 0.97 (10^13.9 to 10^14.6)``."""
        end = float(self.second_better[-1])
        if self.at is None:
            better, sure = (second, end) if end >= 0.5 else (first, 1 - end)
            furthest = f"10^{math.log10(self.compute[-1]):.1f} FLOPs"
            return f"no crossing up to {furthest}: {better} is better there with probability {sure:.2f}"
        # Above the crossing, as far as the laws are followed.
        above = self.second_better[self.compute > self.at]
        share = float(above.mean()) if len(above) else end
        better, sure = (second, share) if share >= 0.5 else (first, 1 - share)
        where = (
            ""
            if self.interval is None
            else (f" (10^{math.log10(self.interval.low):.1f} to 10^{math.log10(self.interval.high):.1f})")
        )
        return f"above 10^{math.log10(self.at):.1f} FLOPs {better} is better with probability {sure:.2f}{where}"


def find_crossing(first: Ladder, second: Ladder, resamples: int = RESAMPLES, seed: int = 0) -> Crossing:
    """Of two ladders of the same seeds, in the same order (else ArgumentError): their deviations are drawn together."""
    if len(first.losses) != len(second.losses):
        raise ArgumentError(f"losses: {len(first.losses)} and {len(second.losses)} seeds must be the same seeds")
    ends = min(first.compute[0], second.compute[0]), BEYOND * max(first.compute[-1], second.compute[-1])
    compute = np.geomspace(*ends, POINTS)
    # With one seed nothing is shared, and the draws have to differ.
    other = seed if len(first.losses) > 1 else seed + 1
    apart = _apart(fit_ladder(first, resamples, seed), fit_ladder(second, resamples, other), compute)
    places = _last_crossings(apart, np.log(compute))
    crossed = places[1:][np.isfinite(places[1:])]
    interval = None
    if 2 * len(crossed) >= resamples:
        low, high = np.exp(np.quantile(crossed, [0.025, 0.975]))
        interval = Interval(float(low), float(high))
    return Crossing(
        compute=compute,
        second_better=(apart[1:] < 0).mean(axis=0),
        at=float(np.exp(places[0])) if np.isfinite(places[0]) else None,
        interval=interval,
        probability=len(crossed) / resamples,
    )


def _apart(first: Laws, second: Laws, compute: Floats) -> Floats:
    """float64[1 + R, Q]: the second's loss less the first's."""
    apart: Floats = second.losses(compute) - first.losses(compute)
    return apart


def _last_crossings(apart: Floats, place: Floats) -> Floats:
    """float64[R]: where each row changes its sign for the last time; NaN if it never does."""
    changes = np.sign(apart[:, 1:]) * np.sign(apart[:, :-1]) < 0
    last = changes.shape[1] - 1 - changes[:, ::-1].argmax(axis=1)
    rows = np.arange(len(apart))
    before, after = apart[rows, last], apart[rows, last + 1]
    step = np.divide(before, before - after, out=np.zeros_like(before), where=before != after)
    found = place[last] + step * (place[last + 1] - place[last])
    return np.where(changes.any(axis=1), found, np.nan)
