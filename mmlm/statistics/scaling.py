"""A loss against compute: ``loss = floor + scale * compute**-exponent``, with bands, and tried on the largest size.

Relative errors are squared: the noise of a loss is about as large, in per cent, at every size. For a given exponent the
other two are a least-squares fit of two columns, so only the exponent is searched; all resamples are fitted at once.

Resamples follow seeds: a seed's deviations from the mean, at all sizes and of both recipes, are taken together, times
normal numbers (a multiplier bootstrap), which keeps what the sizes of one seed have in common; the scale of few seeds
is as uncertain as Student's t says. What falls with compute is fitted: a loss, or one minus a share.
"""

from dataclasses import dataclass

import numpy as np

from mmlm.core.errors import ArgumentError
from mmlm.statistics.clusters import Floats
from mmlm.statistics.intervals import Interval

RESAMPLES = 1000
SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.005, 3.0
COARSE, FINE, ROUNDS = 120, 21, 3
"""Exponents tried first, and around the best of them; how often the latter."""
PARAMETERS = 3


@dataclass(frozen=True)
class Laws:
    """R power laws; the first is the fit, the others those of resamples."""

    reference: float
    """The compute at which ``scale`` is what stands above the floor."""
    floor: Floats
    """float64[R], at least 0."""
    scale: Floats
    """float64[R], at least 0: losses do not rise with compute."""
    exponent: Floats
    """float64[R]."""

    def losses(self, compute: Floats) -> Floats:
        """float64[R, Q] at ``compute`` float64[Q]."""
        ratio = np.log(np.asarray(compute, dtype=np.float64) / self.reference)
        found: Floats = self.floor[:, None] + self.scale[:, None] * np.exp(-self.exponent[:, None] * ratio)
        return found

    def band(self, compute: Floats, level: float = 0.05) -> tuple[Floats, Floats, Floats]:
        """The fit and both ends of its band, float64[Q] each."""
        losses = self.losses(compute)
        low, high = np.quantile(losses, [level / 2, 1 - level / 2], axis=0)
        return losses[0], low, high


@dataclass(frozen=True)
class Ladder:
    """The runs of one recipe. Raises ArgumentError."""

    compute: Floats
    """float64[P], FLOPs, rising."""
    losses: Floats
    """float64[S, P]: a row for each seed."""

    def __post_init__(self) -> None:
        points = len(self.compute)
        if self.losses.ndim != 2 or self.losses.shape[1] != points or points <= PARAMETERS:
            raise ArgumentError(
                f"losses: shape {self.losses.shape} must be seeds by sizes, and {points} sizes more than {PARAMETERS}"
            )
        if (self.compute <= 0).any() or (np.diff(self.compute) <= 0).any():
            raise ArgumentError("compute: must be above 0 and rise from size to size")
        if not np.isfinite(self.losses).all() or (self.losses <= 0).any():
            raise ArgumentError("losses: must be finite and above 0")

    def without_largest(self) -> tuple[Floats, Floats]:
        """Compute and losses of all sizes but the last."""
        return self.compute[:-1], self.losses[:, :-1]


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the others."""

    compute: float
    predicted: float
    interval: Interval
    """Where 95% of such measurements are expected, each the mean of as many seeds."""
    observed: float

    @property
    def inside(self) -> bool:
        """Whether the law held."""
        return self.interval.holds(self.observed)


def fit_ladder(ladder: Ladder, resamples: int = RESAMPLES, seed: int = 0) -> Laws:
    """The law of all sizes, and those of resamples."""
    return fit_laws(ladder.compute, _with_noise(ladder, resamples, seed))


def predict_largest(ladder: Ladder, resamples: int = RESAMPLES, seed: int = 0) -> HeldOut:
    """The largest size, from a fit of the others; at least 5 sizes (ArgumentError), so that those have one to spare."""
    if len(ladder.compute) <= PARAMETERS + 1:
        raise ArgumentError(f"compute: {len(ladder.compute)} sizes must be at least 5 to hold one out")
    drawn = _with_noise(ladder, resamples, seed)
    predicted = fit_laws(ladder.compute[:-1], drawn[:, :-1]).losses(ladder.compute[-1:])[:, 0]
    observed = float(ladder.losses[:, -1].mean())
    # A measurement strays from the truth by its own noise, and the prediction by that of the sizes it is made from.
    relative = drawn[1:, -1] / observed - predicted[1:] / predicted[0]
    low, high = np.quantile(predicted[0] * (1 + relative), [0.025, 0.975])
    return HeldOut(float(ladder.compute[-1]), float(predicted[0]), Interval(float(low), float(high)), observed)


def deviations_drawn(seeds: int, resamples: int, seed: int) -> Floats:
    """float64[R, S]: what the deviations of the seeds are multiplied by, for the mean's error in each resample."""
    random = np.random.default_rng(seed)
    normal = random.normal(size=(resamples, seeds))
    wider = np.sqrt((seeds - 1) / random.chisquare(seeds - 1, size=resamples))
    drawn: Floats = normal * wider[:, None] / np.sqrt(seeds * (seeds - 1))
    return drawn


def _with_noise(ladder: Ladder, resamples: int, seed: int) -> Floats:
    """float64[1 + R, P]: the means of the sizes, then those of resamples."""
    seeds, points = ladder.losses.shape
    means = ladder.losses.mean(axis=0)
    if seeds > 1:
        error = deviations_drawn(seeds, resamples, seed) @ ((ladder.losses - means) / means)
    else:  # one seed: its noise is what the law leaves over
        left = means / fit_laws(ladder.compute, means[None]).losses(ladder.compute)[0] - 1
        spread = np.sqrt((left**2).sum() / (points - PARAMETERS))
        error = spread * np.random.default_rng(seed).standard_t(points - PARAMETERS, size=(resamples, points))
    return np.concatenate([means[None], np.maximum(means * (1 + error), 1e-3 * means)])


def fit_laws(compute: Floats, losses: Floats) -> Laws:
    """The power laws of R rows of losses, float64[R, P], at ``compute`` float64[P]."""
    reference = float(np.exp(np.log(compute).mean()))
    ratio = np.log(compute / reference)
    tried = np.geomspace(SMALLEST_EXPONENT, LARGEST_EXPONENT, COARSE)
    width = np.log(tried[1] / tried[0])
    exponents = np.broadcast_to(tried, (len(losses), COARSE))
    for number in range(ROUNDS + 1):
        floor, scale, error = _fits(np.exp(-exponents[:, :, None] * ratio), losses)
        best = error.argmin(axis=1)[:, None]
        floor, scale, exponent = (np.take_along_axis(one, best, axis=1)[:, 0] for one in (floor, scale, exponents))
        if number < ROUNDS:
            around = np.linspace(-width, width, FINE)
            width *= 2 / (FINE - 1)
            exponents = np.clip(exponent[:, None] * np.exp(around), SMALLEST_EXPONENT, LARGEST_EXPONENT)
    return Laws(reference, floor, scale, exponent)


def _fits(columns: Floats, losses: Floats) -> tuple[Floats, Floats, Floats]:
    """Floor, scale and squared relative error, float64[R, E], for ``columns`` float64[R, E, P]: compute**-exponent."""
    weighted = columns / losses[:, None, :]
    ones = 1 / losses
    one_one = (ones**2).sum(axis=1)[:, None]
    one_own = (weighted * ones[:, None, :]).sum(axis=2)
    own_own = (weighted**2).sum(axis=2)
    one_loss = ones.sum(axis=1)[:, None]
    own_loss = weighted.sum(axis=2)
    determinant = np.maximum(one_one * own_own - one_own**2, 1e-300)
    floor = (one_loss * own_own - own_loss * one_own) / determinant
    scale = (own_loss * one_one - one_loss * one_own) / determinant
    # Neither may be negative: then the other is fitted alone.
    scale = np.where(floor < 0, own_loss / own_own, scale)
    floor = np.where(floor < 0, 0.0, floor)
    floor = np.where(scale < 0, one_loss / one_one, floor)
    scale = np.where(scale < 0, 0.0, scale)
    left = floor[..., None] * ones[:, None, :] + scale[..., None] * weighted - 1
    return floor, scale, (left**2).sum(axis=2)
