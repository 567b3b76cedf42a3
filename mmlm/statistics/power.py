"""How large a difference a study can find, before it is run and after.

Power is that of the test that is made: sign flips over S seeds, the largest of K contrasts, at a level. It moves in
steps with the number of seeds (six seeds are significant only if all have one sign), which no formula of normal
distributions has, so it is simulated: normal differences of seeds, of standard deviation 1, and the other contrasts
without a difference and correlated by a half, as those with one baseline are. Effects are then in units of the standard
deviation of a paired difference from seed to seed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Components, Floats
from mmlm.statistics.distributions import NORMAL
from mmlm.statistics.intervals import critical_value
from mmlm.statistics.sign_flips import TIE, flipped_statistics, seeds_for_a_test, signs_of, smallest_p, why_no_test

STUDIES = 2000
"""Studies that are simulated."""
SIGNS = 1024
"""Of each; with more seeds than 11 they are drawn."""
ALIKE = 0.5
"""The correlation of two contrasts."""
LARGEST_EFFECT = 64.0
"""In standard deviations; a study that does not find this finds nothing."""
MOST_SEEDS = 64
"""Nobody is told to train more."""


@dataclass(frozen=True)
class Prior:
    """What is known of a paired difference before a study, from an earlier one or a guess; in the score's own units."""

    seed_deviation: float
    """Standard deviation of the difference from seed to seed, on the same items."""
    item_error: float = 0.0
    """Standard error of the difference that the draw of items brings, however many seeds there are."""

    def __post_init__(self) -> None:
        for name, value in (("seed_deviation", self.seed_deviation), ("item_error", self.item_error)):
            if not (math.isfinite(value) and value >= 0):
                raise ArgumentError(f"{name}: {value} must be a number of at least 0")

    def on_items(self, factor: float) -> "Prior":
        """That of a split with ``factor`` times the clusters. What seeds differ by is left as it is."""
        return Prior(self.seed_deviation, self.item_error / math.sqrt(factor))


def prior_from(differences: Iterable[Components]) -> Prior:
    """The prior of a new study, from the paired differences of an earlier one: the root of their mean variances."""
    parts = list(differences)
    if not parts:
        raise ArgumentError("differences: none, and a forecast needs the variance of at least one")
    return Prior(
        math.sqrt(sum(one.between_seeds for one in parts) / len(parts)),
        math.sqrt(sum(one.from_items for one in parts) / len(parts)),
    )


class Simulated:
    """Studies of S seeds and K contrasts, of which the first may have an effect."""

    def __init__(self, seeds: int, contrasts: int = 1) -> None:
        random = np.random.default_rng(1000 * seeds + contrasts)
        signs = signs_of(seeds)
        if len(signs) > SIGNS:  # some of them, and those that were seen
            signs = np.concatenate([signs[:1], signs[1 + random.choice(len(signs) - 1, SIGNS - 1, replace=False)]])
        shared = math.sqrt(ALIKE) * random.normal(size=(STUDIES, seeds))
        own = math.sqrt(1 - ALIKE) * random.normal(size=(contrasts, STUDIES, seeds))
        self.first: Floats = shared + own[0]
        """float64[M, S]: differences of the first contrast, without its effect."""
        self.sums: Floats = self.first @ signs.T
        """float64[M, F]: their sums by sign."""
        self.balance: Floats = signs.sum(axis=1)
        """float64[F]: what an effect of 1 adds to them."""
        self.others: Floats = np.zeros_like(self.sums)
        """float64[M, F]: the largest statistic of the other contrasts."""
        for other in own[1:]:
            np.maximum(self.others, flipped_statistics((shared + other).T, signs).T, out=self.others)

    def power(self, effect: float, level: float) -> float:
        """The share of studies in which the first contrast is significant, where its differences have mean ``effect``
        and standard deviation 1."""
        lengths = np.sqrt(((self.first + effect) ** 2).sum(axis=1))[:, None]
        statistics = np.maximum(np.abs(self.sums + effect * self.balance) / lengths, self.others)
        own = np.abs(self.sums[:, :1] + effect * self.balance[0]) / lengths
        return float(((statistics >= own - TIE).mean(axis=1) <= level).mean())


@lru_cache(maxsize=1024)
def detectable_in_deviations(seeds: int, contrasts: int = 1, level: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest effect that S seeds find with ``power``, in standard deviations of the paired difference from seed
    to seed; None where no effect can be found."""
    if seeds < 2 or smallest_p(seeds) > level:
        return None
    studies = Simulated(seeds, contrasts)
    low, high = 0.0, 4 / math.sqrt(seeds)
    while studies.power(high, level) < power:
        low, high = high, 2 * high
        if high > LARGEST_EFFECT:
            return None
    while high - low > 0.004 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if studies.power(middle, level) < power else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Forecast:
    """What a study of S seeds can find."""

    seeds: int
    detectable: float | None
    """The smallest difference on these items that it finds with the power asked for; None if no test is possible."""
    detectable_beyond: float | None
    """The same for items of this kind: by normal distributions, so that it is rougher."""


def forecast(prior: Prior, seeds: int, contrasts: int = 1, level: float = 0.05, power: float = 0.8) -> Forecast:
    """Before a study. ``contrasts`` is how many are tested together. Raises ArgumentError."""
    _check(seeds, contrasts, level, power)
    found = detectable_in_deviations(seeds, contrasts, level, power)
    if found is None:
        return Forecast(seeds, None, None)
    on_items = found * prior.seed_deviation
    beyond = _beyond(_parts(prior, seeds), contrasts, level, power)
    return Forecast(seeds, on_items, max(on_items, beyond))


def seeds_needed(
    prior: Prior, effect: float, contrasts: int = 1, level: float = 0.05, power: float = 0.8, beyond: bool = False
) -> int | None:
    """The fewest seeds that find ``effect`` (> 0): on these items, or ``beyond`` them; None if 64 do not."""
    _check(2, contrasts, level, power)
    if not effect > 0:
        raise ArgumentError(f"effect: {effect} must be above 0")

    def finds(seeds: int) -> bool:
        parts = _parts(prior, seeds)
        if beyond and _beyond(parts, contrasts, level, power) > effect:
            return False
        return smallest_p(seeds) <= level and (
            prior.seed_deviation == 0
            or Simulated(seeds, contrasts).power(effect / prior.seed_deviation, level) >= power
        )

    # From what normal distributions would take: the exact test takes a little more, and its steps are small there.
    normal = ((NORMAL.inv_cdf(1 - level / 2) + NORMAL.inv_cdf(power)) * prior.seed_deviation / effect) ** 2
    least = min(max(math.ceil(normal), seeds_for_a_test(level)), MOST_SEEDS)
    while least <= MOST_SEEDS and not finds(least):
        least += 1
    return least if least <= MOST_SEEDS else None


def _parts(prior: Prior, seeds: int) -> Components:
    """As if they had been measured over so many clusters that their t is normal."""
    return Components(prior.seed_deviation**2, prior.item_error**2, seeds, 10**9)


def _beyond(parts: Components, contrasts: int, level: float, power: float) -> float:
    """The effect that a normal test of several contrasts together finds with ``power``."""
    each = level_of_each(contrasts, level)
    return (critical_value(parts, each) + NORMAL.inv_cdf(power)) * math.sqrt(parts.of_mean)


@lru_cache(maxsize=1024)
def level_of_each(contrasts: int, level: float) -> float:
    """The level of one of K normal contrasts, where the largest of all exceeds its bound with probability ``level``.

    They are correlated by a half, as those with one baseline are (Dunnett, JASA 1955): each is the sum of a common part
    and its own.
    """
    common = np.linspace(-8, 8, 161)
    weights = np.exp(-(common**2) / 2)
    weights /= weights.sum()
    low, high = level / contrasts, level
    while high - low > 1e-6 * level:
        each = (low + high) / 2
        bound = NORMAL.inv_cdf(1 - each / 2) * math.sqrt(2)
        within = [NORMAL.cdf(bound - one) - NORMAL.cdf(-bound - one) for one in common]
        exceeded = 1 - float(weights @ np.array(within) ** contrasts)
        low, high = (each, high) if exceeded < level else (low, each)
    return (low + high) / 2


def _check(seeds: int, contrasts: int, level: float, power: float) -> None:
    for name, whole in (("seeds", seeds), ("contrasts", contrasts)):
        if whole < 1:
            raise ArgumentError(f"{name}: {whole} must be at least 1")
    for name, share in (("level", level), ("power", power)):
        if not 0 < share < 1:
            raise ArgumentError(f"{name}: {share} must lie between 0 and 1")


def in_words(prior: Prior, seeds: int, wanted: float, unit: str, contrasts: int = 1) -> str:
    """``with 8 seeds and this split you can detect 1.7 points of R@5; 14 seeds would be needed for 1``: ``unit`` is
    ``points of R@5``, and the prior and ``wanted`` are in it."""
    found = forecast(prior, seeds, contrasts).detectable
    reason = why_no_test(seeds)
    said = (
        reason
        if reason
        else "no difference is found"
        if found is None
        else (f"with {seeds} seeds and this split you can detect {found:.2g} {unit}")
    )
    if found is not None and found <= wanted:
        return said
    needed = seeds_needed(prior, wanted, contrasts)
    more = f"more than {MOST_SEEDS}" if needed is None else str(needed)
    return f"{said}; {more} seeds would be needed for {wanted:g}"
