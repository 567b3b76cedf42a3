"""Intervals of a mean over few seeds and many items.

A bootstrap over seeds is too narrow with few of them: of three seeds it never leaves their range. So the spread of
seeds is taken with Student's t, and the error that the draw of items brings is added. ``python -m mmlm.bench
statistics`` measures how often each kind of interval holds the truth.

How many degrees of freedom two variances have together is the question of Behrens and Fisher. Of the usual answers,
Satterthwaite's (Biometrics Bulletin 1946) is too narrow with few seeds (92.3% of 95% at three), and that of Cochran
(Biometrics 1964), the weighted mean of the two quantiles, too wide (97.1%). Half way between the two lies within 94.1%
and 96.3% for 3 or more seeds and any share of the two variances.
"""

import math
from dataclasses import dataclass

from mmlm.statistics.clusters import Components
from mmlm.statistics.distributions import student_quantile


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies inside."""
        return self.low <= value <= self.high

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


def seeds_interval(mean: float, parts: Components, level: float = 0.05) -> Interval:
    """Where the mean over all seeds lies, *on these items*: Student's t over seeds. Holds with 1 - ``level``."""
    half = student_quantile(1 - level / 2, parts.seeds - 1) * math.sqrt(parts.between_seeds / parts.seeds)
    return Interval(mean - half, mean + half)


def mean_interval(mean: float, parts: Components, level: float = 0.05) -> Interval:
    """Where the mean over all seeds and over all items *of this kind* lies. Holds with 1 - ``level``."""
    half = critical_value(parts, level) * math.sqrt(parts.of_mean)
    return Interval(mean - half, mean + half)


def critical_value(parts: Components, level: float) -> float:
    """How many standard errors of the mean over seeds and items stand on each side of an interval."""
    of_seeds, of_items = parts.between_seeds / parts.seeds, parts.from_items
    share = 1 - level / 2
    own = student_quantile(share, parts.seeds - 1)
    total = of_seeds + of_items
    if total <= 0:
        return own
    of_clusters = student_quantile(share, parts.clusters - 1)
    cochran = (of_seeds * own + of_items * of_clusters) / total
    # As shares of the total, so that no square underflows.
    first, second = of_seeds / total, of_items / total
    satterthwaite = student_quantile(share, 1 / (first**2 / (parts.seeds - 1) + second**2 / (parts.clusters - 1)))
    return (cochran + satterthwaite) / 2
