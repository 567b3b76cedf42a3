"""Made-up studies of which the truth is known: do the tests and intervals keep what they promise?

A score is right or wrong (R@k, accuracy, exact match), by item, as recorded ones are: an item has a difficulty, those
of a concept have one in common, a recipe finds some concepts harder than another recipe does, seeds differ, cells of
one seed less than others, and the rest is chance. All are normal numbers, and a score is 1 where their sum is above 0,
so the true mean is known exactly, and so is the effect of a shift.

Recorded scores can be had too: ``RecordedStudies`` draws cells from the runs of one recipe, between which there is no
difference.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Floats, Integers, by_cluster
from mmlm.statistics.distributions import NORMAL


@dataclass(frozen=True)
class Study:
    """One made-up study."""

    cells: tuple[Floats, ...]
    """float64[S, N] each; the first is the baseline."""
    cluster: Integers
    """int64[N]."""


class Studies(Protocol):
    """Where made-up studies come from."""

    def draw(self, seeds: int, cells: int, random: np.random.Generator) -> Study:
        """One study of so many seeds and cells."""
        ...

    @property
    def effects(self) -> tuple[float, ...]:
        """The true differences of the cells after the first from it; cells that are not named have none."""
        ...


@dataclass(frozen=True)
class MadeUpStudies:
    """Scores as of retrieval among some hundred images; deviations are those of the normal numbers."""

    items: int = 600
    items_of_concept: int = 4
    share: float = 0.55
    """The true mean of a cell."""
    concept: float = 0.7
    item: float = 0.5
    recipe: float = 0.0
    """By which a concept is harder for one recipe than for another. Above 0, a split favours some recipe by chance."""
    shared_seed: float = 0.05
    """What the cells of one seed have in common: the same start and order of data."""
    own_seed: float = 0.04
    """What they do not."""
    noise: float = 0.6
    """Of each seed, cell and item."""
    lopsided: bool = False
    """Whether seeds fail by far more often than they excel."""
    gains: tuple[float, ...] = ()
    """True differences of the cells after the first."""

    @property
    def effects(self) -> tuple[float, ...]:
        """The true differences."""
        return self.gains

    def draw(self, seeds: int, cells: int, random: np.random.Generator) -> Study:
        """One study."""
        cluster = np.arange(self.items) // self.items_of_concept
        concepts = int(cluster[-1]) + 1
        common = (
            self.concept * random.normal(size=concepts)[cluster]
            + self.item * random.normal(size=self.items)
            + self.shared_seed * random.normal(size=(seeds, 1))
        )
        found = []
        for cell in range(cells):
            own = random.normal(size=(seeds, 1))
            if self.lopsided:
                own = 1 - random.exponential(size=(seeds, 1))
            latent = (
                common
                + self.recipe * random.normal(size=concepts)[cluster]
                + self.own_seed * own
                + self.noise * random.normal(size=(seeds, self.items))
            )
            gain = self.gains[cell - 1] if 0 < cell <= len(self.gains) else 0.0
            found.append((latent > -self._level(self.share + gain)).astype(np.float64))
        return Study(tuple(found), cluster.astype(np.int64))

    def _level(self, share: float) -> float:
        """What is to be added so that ``share`` of the sums lie above 0."""
        parts = (self.concept, self.item, self.recipe, self.shared_seed, self.own_seed, self.noise)
        return NORMAL.inv_cdf(share) * math.sqrt(sum(one**2 for one in parts))

    def with_gain(self, gain: float) -> "MadeUpStudies":
        """The same with a second cell that is better by ``gain``."""
        return replace(self, gains=(gain,))


@dataclass(frozen=True)
class RecordedStudies:
    """Studies without any difference: all cells are drawn from the runs of one recipe, and their items with them."""

    runs: Floats
    """float64[runs, N]: recorded scores of one recipe's seeds, by item; the more runs the better."""
    cluster: Integers
    """int64[N]."""
    effects: tuple[float, ...] = ()

    def draw(self, seeds: int, cells: int, random: np.random.Generator) -> Study:
        """One study: clusters with replacement, and whole runs with replacement."""
        _, group, counts = np.unique(self.cluster, return_inverse=True, return_counts=True)
        rows = np.split(np.argsort(group, kind="stable"), counts.cumsum()[:-1])
        chosen = random.integers(len(rows), size=len(rows))
        items = np.concatenate([rows[one] for one in chosen])
        cluster = np.repeat(np.arange(len(chosen)), [len(rows[one]) for one in chosen])
        runs = random.integers(len(self.runs), size=(cells, seeds))
        return Study(tuple(self.runs[own][:, items] for own in runs), cluster.astype(np.int64))

    def __post_init__(self) -> None:
        by_cluster(self.runs, self.cluster)
        if len(self.runs) < 2:
            raise ArgumentError(f"runs: {len(self.runs)} must be at least 2, to draw seeds from")
