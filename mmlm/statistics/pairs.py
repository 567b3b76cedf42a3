"""What pairing by seed brings: cells of one seed start alike, so their difference varies less than either of them."""

import math
from dataclasses import dataclass

import numpy as np

from mmlm.statistics.clusters import Floats
from mmlm.statistics.distributions import NORMAL
from mmlm.statistics.intervals import Interval


@dataclass(frozen=True)
class Pairing:
    """How two cells hang together over seeds."""

    correlation: float | None
    """Of their means, seed by seed; None if one of them does not vary."""
    interval: Interval | None
    """95%, by Fisher's z; None with fewer than 4 seeds."""
    gain: float | None
    """One paired seed says as much of the difference as so many seeds of cells that have nothing in common: the sum of
    the two variances over that of the difference. None if the difference does not vary."""


def pairing(first: Floats, second: Floats) -> Pairing:
    """Of the means float64[S] of two cells, in the order of the same seeds."""
    if len(first) < 2:
        return Pairing(None, None, None)
    apart, of_difference = float(first.var(ddof=1) + second.var(ddof=1)), float((second - first).var(ddof=1))
    gain = apart / of_difference if of_difference > 0 else None
    if min(first.std(), second.std()) <= 0:
        return Pairing(None, None, gain)
    correlation = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    interval = None
    if len(first) >= 4 and abs(correlation) < 1:
        half = NORMAL.inv_cdf(0.975) / math.sqrt(len(first) - 3)
        middle = math.atanh(correlation)
        interval = Interval(math.tanh(middle - half), math.tanh(middle + half))
    return Pairing(correlation, interval, gain)
