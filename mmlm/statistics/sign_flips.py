"""Exact tests over seeds: if two cells do not differ, the sign of each seed's difference is a matter of chance.

All ways to give signs to the S differences are gone through (Fisher, The Design of Experiments, 1935), so nothing is
assumed but that a difference is as likely as its negative. With S seeds, no p is below 2 / 2**S: three seeds have no
test at 5%, and six are the fewest.

Several contrasts are tested at once: the signs of a seed are turned in all contrasts together, which keeps how they
hang together, and p is how often the largest of all is as large (max-T, step-down: Westfall and Young, Resampling-Based
Multiple Testing, 1993). Then the chance of any false finding in the whole study is at most the level. Holm's correction
of K contrasts would need 2**S >= 2 K / level. A single p is exact; together they are where a seed's differences are
jointly as likely as their negatives, and the simulation of ``mmlm.bench statistics`` has lopsided ones too.

*What is tested is a difference on these items.* Whether it goes beyond them is asked by ``beyond.py``.
"""

import math
from dataclasses import dataclass

import numpy as np

from mmlm.statistics.clusters import Floats

ALL_SIGNS = 14
"""Up to so many seeds, all signs are tried."""
DRAWN_SIGNS = 10_000
"""Signs drawn beyond that; those that were seen are one of them, which keeps the test valid."""
TIE = 1e-9
"""Statistics that differ by rounding alone are equal."""


@dataclass(frozen=True)
class Tested:
    """What the signs say of K contrasts."""

    p: Floats
    """float64[K]: of each alone."""
    adjusted: Floats
    """float64[K]: of each among all contrasts of the study."""
    smallest: float
    """No p can be smaller, whatever the differences are."""


def smallest_p(seeds: int) -> float:
    """The smallest p that S seeds can give."""
    return 2.0 ** (1 - seeds)


def seeds_for_a_test(level: float = 0.05) -> int:
    """The fewest seeds with which anything can be significant: 6 at 5%."""
    return math.ceil(1 - math.log2(level) - TIE)


def why_no_test(seeds: int, level: float = 0.05) -> str | None:
    """Why S seeds cannot be tested at ``level``, for a table; None if they can."""
    if smallest_p(seeds) <= level:
        return None
    return (
        f"no test is possible: the smallest p of {seeds} seeds is {smallest_p(seeds):.3g}, "
        f"and {level:g} takes {seeds_for_a_test(level)}"
    )


def signs_of(seeds: int, seed: int = 0) -> Floats:
    """float64[F, S] of 1 and -1; the first row is all 1. The first seed keeps its sign: a sum and its negative are
    equally large."""
    if seeds <= ALL_SIGNS:
        bits = np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds - 1)[None]
        free = 1.0 - 2.0 * (bits & 1)
    else:
        random = np.random.default_rng(seed)
        free = 1.0 - 2.0 * random.integers(2, size=(DRAWN_SIGNS, seeds - 1))
        free[0] = 1.0
    return np.concatenate([np.ones((len(free), 1)), free], axis=1)


def flipped_statistics(differences: Floats, signs: Floats) -> Floats:
    """float64[F, K]: for each row of signs, how large the sum over seeds is, in units that no sign changes.

    ``differences`` is float64[S, K]. It rises with Student's t, so that contrasts of different spread are comparable.
    """
    lengths = np.sqrt((differences**2).sum(axis=0))
    found: Floats = np.abs(signs @ (differences / np.where(lengths > 0, lengths, 1.0)))
    return found


def sign_flip_test(differences: Floats) -> Tested:
    """Tests K contrasts, float64[S, K]: each row one seed, the same in all columns."""
    statistics = flipped_statistics(differences, signs_of(len(differences)))
    p = (statistics >= statistics[0] - TIE).mean(axis=0)
    return Tested(p, step_down(statistics[0], statistics), smallest_p(len(differences)))


def step_down(observed: Floats, null: Floats) -> Floats:
    """float64[K]: p of each of K statistics among the largest of those that are not larger (``null`` float64[F, K])."""
    order = np.argsort(-observed, kind="stable")
    # From the smallest up: what each has to beat is the largest of itself and of all below it.
    largest = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]
    shares = np.maximum.accumulate((largest >= observed[order] - TIE).mean(axis=0))
    adjusted = np.empty_like(shares)
    adjusted[order] = shares
    return adjusted
