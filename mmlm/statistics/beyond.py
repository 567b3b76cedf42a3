"""Whether differences go beyond the items of a split: another draw of seeds *and* of items.

Seeds share their items. A cell that is better on these images, but not on images at large, is better with every seed,
and the more seeds, the surer the test over seeds is of it. So p is taken again with both: signs are turned by seed, and
to each is added what another draw of clusters would add (normal, with the covariance that the contrasts have over
clusters). It is never smaller than that over seeds alone.
"""

from collections.abc import Sequence

import numpy as np

from mmlm.statistics.clusters import Clustered, Floats, components
from mmlm.statistics.sign_flips import TIE, Tested, sign_flip_test, signs_of, step_down

DRAWS = 4096
"""Of signs and clusters together."""


def beyond_test(contrasts: Sequence[Clustered], over_seeds: Tested | None = None, seed: int = 0) -> Tested:
    """Tests K contrasts: the clustered differences of two cells each, of the same seeds and items."""
    random = np.random.default_rng(seed)
    differences = np.stack([one.means for one in contrasts], axis=1)
    seeds = len(differences)
    over_seeds = sign_flip_test(differences) if over_seeds is None else over_seeds
    parts = [components(one) for one in contrasts]
    from_items = np.array([one.from_items for one in parts])
    signs = signs_of(seeds)
    signs = np.tile(signs, (-(-DRAWS // len(signs)), 1))
    flipped = signs @ differences / seeds
    # Each mean is divided by an error of its own, which turning signs changes too: else the difference that was seen
    # would widen what chance is said to do.
    of_seeds = np.maximum((differences**2).mean(axis=0) - flipped**2, 0.0) / (seeds - 1)
    errors = np.sqrt(of_seeds + from_items)
    moved = np.abs(flipped + _moved_by_items(contrasts, from_items, len(signs), random))
    null = np.divide(moved, errors, out=np.where(moved > 0, np.inf, 0.0), where=errors > 0)
    observed = np.abs(differences.mean(axis=0))
    own = np.sqrt([one.of_mean for one in parts])
    observed = np.divide(observed, own, out=np.where(observed > 0, np.inf, 0.0), where=own > 0)
    # What was seen is one of the draws, so that no p is 0.
    null = np.concatenate([observed[None], null])
    p = (null >= observed - TIE).mean(axis=0)
    adjusted = step_down(observed, null)
    return Tested(np.maximum(p, over_seeds.p), np.maximum(adjusted, over_seeds.adjusted), over_seeds.smallest)


def _moved_by_items(
    contrasts: Sequence[Clustered], variances: Floats, rows: int, random: np.random.Generator
) -> Floats:
    """float64[rows, K]: what other draws of clusters add to the K differences."""
    influences = np.stack([one.influences for one in contrasts], axis=1)
    spread = influences.std(axis=0)
    standard = (influences - influences.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
    root = vectors * np.sqrt(np.clip(values, 0, None))
    drawn: Floats = random.normal(size=(rows, len(contrasts))) @ root.T * np.sqrt(variances)
    return drawn
