"""How often tests and intervals are right in studies of which the truth is known (``simulation.py``)."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmlm.statistics.beyond import beyond_test
from mmlm.statistics.bootstrap import bca_interval, percentile_interval, resampled_means
from mmlm.statistics.clusters import Clustered, by_cluster, components
from mmlm.statistics.distributions import NORMAL
from mmlm.statistics.intervals import Interval, mean_interval, seeds_interval
from mmlm.statistics.looks import LookPlan, progress
from mmlm.statistics.power import Prior, Simulated, forecast, prior_from
from mmlm.statistics.sign_flips import sign_flip_test
from mmlm.statistics.simulation import MadeUpStudies, Studies, Study

RESAMPLES = 400
"""Of the bootstraps that the intervals are compared with."""
SEEDS_DRAWN, SEEDS_BCA, BOTH_DRAWN = "seeds, percentiles", "seeds, BCa", "both, percentiles"
BOOTSTRAPS = (SEEDS_DRAWN, SEEDS_BCA, BOTH_DRAWN)
"""Seeds drawn as in arXiv:2511.19794, and seeds and clusters drawn together."""


@dataclass(frozen=True)
class Share:
    """How many of some studies were so."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.of

    @property
    def error(self) -> float:
        """What it may be off by for chance: half of a 95% interval."""
        return NORMAL.inv_cdf(0.975) * math.sqrt(max(self.value * (1 - self.value), 1 / self.of) / self.of)


@dataclass(frozen=True)
class Rates:
    """What came of many studies."""

    any_on_items: Share
    """Studies with a false finding, by the test over seeds."""
    any_beyond: Share
    """The same by the test over seeds and items."""
    by_seeds: Share
    """Differences whose true value lies in the interval over seeds alone."""
    by_both: Share
    """In that over seeds and items."""
    bootstraps: Mapping[str, Share]
    """In those of bootstraps, by their name; empty if they were not asked for."""


def error_rates(
    studies: Studies, seeds: int, cells: int, count: int = 1000, level: float = 0.05, bootstrap: bool = False
) -> Rates:
    """Of ``count`` studies of ``seeds`` seeds, in which all cells after the first are compared with it.

    A finding is false where the true difference is 0. Coverage is of the first contrast, so that studies are
    independent. A function of its arguments alone.
    """
    random = np.random.default_rng(1000 * seeds + cells)
    truth = np.zeros(cells - 1)
    truth[: len(studies.effects)] = studies.effects
    false, false_beyond = 0, 0
    held: Counter[str] = Counter()
    for number in range(count):
        paired = _paired(studies.draw(seeds, cells, random))
        tested = sign_flip_test(np.stack([one.means for one in paired], axis=1))
        beyond = beyond_test(paired, tested, number)
        false += bool((tested.adjusted[truth == 0] <= level).any())
        false_beyond += bool((beyond.adjusted[truth == 0] <= level).any())
        first, parts = paired[0], components(paired[0])
        mean = float(first.means.mean())
        intervals = {"seeds": seeds_interval(mean, parts, level), "both": mean_interval(mean, parts, level)}
        if bootstrap:
            intervals |= _bootstraps(first, number, level)
        for name, interval in intervals.items():
            held[name] += interval.holds(float(truth[0]))
    return Rates(
        any_on_items=Share(false, count),
        any_beyond=Share(false_beyond, count),
        by_seeds=Share(held["seeds"], count),
        by_both=Share(held["both"], count),
        bootstraps={name: Share(held[name], count) for name in (BOOTSTRAPS if bootstrap else ())},
    )


def _bootstraps(difference: Clustered, number: int, level: float) -> dict[str, Interval]:
    """The intervals of a difference by bootstraps."""
    means = difference.means
    random = np.random.default_rng(number)
    seeds_drawn = means[random.integers(len(means), size=(RESAMPLES, len(means)))].mean(axis=1)
    left_out = (means.sum() - means) / (len(means) - 1)
    return {
        SEEDS_DRAWN: percentile_interval(seeds_drawn, level),
        SEEDS_BCA: bca_interval(seeds_drawn, float(means.mean()), left_out, level),
        BOTH_DRAWN: percentile_interval(resampled_means([difference], RESAMPLES, number)[:, 0], level),
    }


@dataclass(frozen=True)
class PowerCheck:
    """What was forecast, and what came."""

    seeds: int
    effect: float
    """The true difference."""
    forecast: float
    """The share of studies that were to find it."""
    found: Share


def power_check(
    studies: MadeUpStudies, prior: Prior, seeds: int, cells: int, effect: float, count: int = 1000
) -> PowerCheck:
    """Of the test over seeds: forecast from what earlier studies told (``prior``), then ``count`` with that effect."""
    random = np.random.default_rng(2000 * seeds + cells)
    forecast_share = Simulated(seeds, cells - 1).power(effect / prior.seed_deviation, 0.05)
    found = 0
    shifted = studies.with_gain(effect)
    for _ in range(count):
        paired = _paired(shifted.draw(seeds, cells, random))
        found += bool(sign_flip_test(np.stack([one.means for one in paired], axis=1)).adjusted[0] <= 0.05)
    return PowerCheck(seeds, effect, forecast_share, Share(found, count))


def beyond_power_check(studies: MadeUpStudies, prior: Prior, seeds: int, cells: int, count: int = 1000) -> PowerCheck:
    """Of the test over seeds and items, at the smallest difference that it is said to find in four of five cases.

    Raises ValueError for too few seeds to test.
    """
    effect = forecast(prior, seeds, cells - 1).detectable_beyond
    if effect is None:
        raise ValueError(f"{seeds} seeds find nothing")
    random = np.random.default_rng(4000 * seeds + cells)
    found = 0
    shifted = studies.with_gain(effect)
    for number in range(count):
        found += bool(beyond_test(_paired(shifted.draw(seeds, cells, random)), None, number).adjusted[0] <= 0.05)
    return PowerCheck(seeds, effect, 0.8, Share(found, count))


def pilot(studies: Studies, seeds: int = 8, count: int = 300) -> Prior:
    """What earlier studies tell of a paired difference: a forecast is made from it."""
    random = np.random.default_rng(7)
    return prior_from([components(_paired(studies.draw(seeds, 2, random))[0]) for _ in range(count)])


def _paired(study: Study) -> list[Clustered]:
    """The differences from the first cell, summed by cluster."""
    return [by_cluster(cell - study.cells[0], study.cluster) for cell in study.cells[1:]]


def looks_error_rate(studies: Studies, plan: LookPlan, cells: int, count: int = 1000) -> Share:
    """Studies without any difference in which some look finds one."""
    random = np.random.default_rng(3000 * plan.seeds[-1] + cells)
    false = 0
    for _ in range(count):
        study = studies.draw(plan.seeds[-1], cells, random)
        differences = np.stack([(cell - study.cells[0]).mean(axis=1) for cell in study.cells[1:]], axis=1)
        false += any(progress(differences, plan).decided)
    return Share(false, count)
