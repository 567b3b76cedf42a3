"""How often bands, predictions and crossings of ladders hold the truth, in made-up ladders of which it is known."""

from dataclasses import dataclass

import numpy as np

from mmlm.statistics.clusters import Floats
from mmlm.statistics.crossing import find_crossing
from mmlm.statistics.scaling import Ladder, fit_ladder, predict_largest
from mmlm.statistics.validation import Share

COMPUTE = np.geomspace(1e12, 1e14, 5)
"""Five sizes, a hundredfold apart from end to end."""
CROSSING = 1e13
"""Where the two laws below are equal."""
FIRST, SECOND = (1.2, 0.8, 0.2), (1.0, 1.0, 0.3)
"""Floor, scale and exponent of two recipes."""
NOISE = 0.005
"""Of a loss, relative: of a seed at all sizes of both recipes, and as much again of each run."""
FURTHER = 3e14
"""Compute beyond the ladder, at which the band is tried."""
RESAMPLES = 300


@dataclass(frozen=True)
class LadderRates:
    """Shares of the ladders in which a 95% interval holds the truth."""

    largest: Share
    """The largest size, measured, in the interval predicted from the others."""
    band: Share
    """The law at three times the largest compute, in the band."""
    crossing: Share
    """The crossing of the two laws, in its interval; a pair of ladders without one does not hold it."""


def ladder_rates(seeds: int, count: int = 200) -> LadderRates:
    """Of ``count`` pairs of ladders of ``seeds`` seeds."""
    random = np.random.default_rng(seeds)
    largest = band = crossing = 0
    truth = float(law(np.array([FURTHER]), *FIRST)[0])
    for number in range(count):
        common = NOISE * random.normal(size=(seeds, 1))
        first, second = (
            Ladder(COMPUTE, law(COMPUTE, *parts) * (1 + common + NOISE * random.normal(size=(seeds, len(COMPUTE)))))
            for parts in (FIRST, SECOND)
        )
        largest += predict_largest(first, RESAMPLES, number).inside
        _, low, high = fit_ladder(first, RESAMPLES, number).band(np.array([FURTHER]))
        band += bool(low[0] <= truth <= high[0])
        interval = find_crossing(first, second, RESAMPLES, number).interval
        crossing += interval is not None and interval.holds(CROSSING)
    return LadderRates(Share(largest, count), Share(band, count), Share(crossing, count))


def law(compute: Floats, floor: float, scale: float, exponent: float) -> Floats:
    """float64[P]: the loss at ``compute`` float64[P]; ``scale`` stands above the floor at 1e13 FLOPs."""
    found: Floats = floor + scale * (compute / CROSSING) ** -exponent
    return found
