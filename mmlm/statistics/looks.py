"""Looking at a study while it runs, and stopping what is decided, without more false findings.

Who tests after every seed finds something sooner or later. So the level is spent in parts (Lan and DeMets, Biometrika
1983): by the n-th look, as much as a spending function allows. The bound of a look is that of the signs of all seeds so
far: among the ways to give signs that no earlier look would have stopped at, so few may be as large that all together
stay within what is spent. It is exact for one contrast, as the test at the end is, and by the largest of all contrasts
for several.

O'Brien and Fleming's way spends next to nothing early, and the last look is nearly as it would be without the others.
With few seeds its first looks cannot stop anything: 8 of 16 seeds have a smallest p of 0.0078, and may spend 0.0056.
Pocock's spends evenly.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Floats
from mmlm.statistics.distributions import NORMAL, student_cdf
from mmlm.statistics.sign_flips import DRAWN_SIGNS, TIE, flipped_statistics, smallest_p

ENUMERATED = 18
"""Up to so many seeds at the last look, all signs are tried."""


class Spending(enum.Enum):
    """How much of the level may be spent, by the share of seeds that have come."""

    OBRIEN_FLEMING = "obrien_fleming"
    POCOCK = "pocock"

    def spent(self, share: float, level: float) -> float:
        """The part of ``level`` that a study may have spent at ``share`` (0 to 1] of its seeds."""
        if self is Spending.POCOCK:
            return level * math.log1p((math.e - 1) * share)
        return 2 - 2 * NORMAL.cdf(NORMAL.inv_cdf(1 - level / 2) / math.sqrt(share))


@dataclass(frozen=True)
class LookPlan:
    """When a study is looked at: fixed before its first run. Raises ArgumentError."""

    seeds: tuple[int, ...]
    """Seeds at each look; the last is the whole study."""
    level: float = 0.05
    spending: Spending = Spending.OBRIEN_FLEMING

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 2 or sorted(set(self.seeds)) != list(self.seeds):
            raise ArgumentError(f"seeds: {list(self.seeds)} must rise, from 2 or more; each is a look")
        if smallest_p(self.seeds[-1]) > self.level:
            raise ArgumentError(f"seeds: {self.seeds[-1]} at the last look are too few for any test at {self.level:g}")

    def allowed(self, look: int) -> float:
        """What may be spent by look ``look`` (from 0)."""
        return self.spending.spent(self.seeds[look] / self.seeds[-1], self.level)

    def looks_that_can_stop(self) -> tuple[int, ...]:
        """The numbers of seeds at which anything can be significant; a look at others costs nothing and is in vain."""
        return tuple(n for look, n in enumerate(self.seeds) if smallest_p(n) <= self.allowed(look))


@dataclass(frozen=True)
class Look:
    """One look that was taken."""

    seeds: int
    spent: float
    """Of the level, so far."""
    bound: float
    """The statistic that a contrast has to reach; infinite if none can."""
    decided: tuple[bool, ...]
    """Which of the K contrasts differ, by this look or one before."""


@dataclass(frozen=True)
class Progress:
    """What the looks up to now say of K contrasts."""

    looks: tuple[Look, ...]
    hopes: tuple[float | None, ...]
    """For each contrast that is not decided: how probable it is that the last look finds it, if it goes on as it has
    gone (conditional power by normal distributions). To stop at a low one, such as below 0.1, makes no false finding
    more likely. None before the first look, and if decided."""
    finished: bool
    """Whether the last look was taken."""

    @property
    def decided(self) -> tuple[bool, ...]:
        """Which contrasts differ; empty before the first look."""
        return self.looks[-1].decided if self.looks else ()


def progress(differences: Floats, plan: LookPlan) -> Progress:
    """All looks that the seeds so far allow. ``differences`` float64[n, K] are those of the seeds in the order in which
    they were planned; a contrast that was stopped once decided has NaN from there on."""
    signs = _signs(plan.seeds[-1])
    open_still = np.ones(len(signs), dtype=bool)
    decided = np.zeros(differences.shape[1], dtype=bool)
    looks: list[Look] = []
    for number, seeds in enumerate(plan.seeds):
        if seeds > len(differences):
            break
        seen = differences[:seeds]
        complete = np.isfinite(seen).all(axis=0)
        if not (complete | decided).all():
            raise ArgumentError("differences: a contrast that is not decided lacks a seed")
        own = flipped_statistics(seen[:, complete], signs[:, :seeds])
        largest = own.max(axis=1, initial=0.0)
        budget = math.floor(plan.allowed(number) * len(signs) + TIE) - int(np.count_nonzero(~open_still))
        bound = _bound(largest[open_still], budget)
        open_still &= largest < bound
        decided[complete] |= own[0] >= bound
        looks.append(Look(seeds, float((~open_still).mean()), bound, tuple(bool(one) for one in decided)))
    hopes: Sequence[float | None] = [None] * differences.shape[1]
    if looks:
        seen = differences[: looks[-1].seeds]
        hopes = [None if done else _hope(column, plan) for done, column in zip(decided, seen.T, strict=True)]
    return Progress(tuple(looks), tuple(hopes), len(looks) == len(plan.seeds))


def _signs(seeds: int) -> Floats:
    """float64[F, S], the first row all 1; the same for every look, which reads the first columns."""
    if seeds <= ENUMERATED:
        bits = np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds - 1)[None]
        free = 1.0 - 2.0 * (bits & 1)
    else:
        free = 1.0 - 2.0 * np.random.default_rng(0).integers(2, size=(2 * DRAWN_SIGNS, seeds - 1))
        free[0] = 1.0
    return np.concatenate([np.ones((len(free), 1)), free], axis=1)


def _bound(largest: Floats, budget: int) -> float:
    """The smallest value that at most ``budget`` of ``largest`` reach; a little below it, so that rounding is a tie."""
    values, counts = np.unique(np.round(largest / TIE) * TIE, return_counts=True)
    reached = counts[::-1].cumsum()
    within = np.count_nonzero(reached <= budget)
    return float(values[::-1][within - 1] - TIE) if within else math.inf


def _hope(differences: Floats, plan: LookPlan) -> float:
    """Conditional power at the last look, under the trend of ``differences`` float64[n]."""
    count, last = len(differences), plan.seeds[-1]
    deviation = float(differences.std(ddof=1))
    if count == last or deviation == 0:
        return float(count < last and differences.mean() != 0)
    share = count / last
    student = abs(float(differences.mean())) / (deviation / math.sqrt(count))
    tail = max(1 - student_cdf(student, count - 1), 1e-15)
    score = NORMAL.inv_cdf(1 - tail)
    needed = NORMAL.inv_cdf(1 - plan.level / 2)
    # At the end the score is score * sqrt(share) now, score / sqrt(share) * (1 - share) by the trend, and chance.
    expected = score * math.sqrt(share) + score * (1 - share) / math.sqrt(share)
    return NORMAL.cdf((expected - needed) / math.sqrt(1 - share))
