"""The 95% interval of a share whose items are not independent. Plain Python: a report is made without torch.

Two drawings of one thing are found, or missed, together more often than drawings of two things. An interval that took
them for independent would be too narrow. So items are counted by *clusters*, those of one concept: Wilson's interval
(JASA 1927) is taken with an effective number of items, their number divided by the design effect, which is the variance
of the share by clusters over that by items (Kish, Survey Sampling, 1965; with Wilson's interval: Dean and Pagano, JSSAM
2015). If every item is a cluster of its own, this is Wilson's plain interval.
"""

import math
from collections.abc import Hashable, Sequence

Z = 1.959963984540054
"""The standard normal distribution lies between -Z and Z with a probability of 95%."""


def share_interval(values: Sequence[float], cluster: Sequence[Hashable]) -> tuple[float, float]:
    """The interval of the mean of ``values``, which lie in [0, 1]; items with equal ``cluster`` belong together.

    Where all values are equal nothing shows how much the items of a cluster have in common; the number of clusters
    counts then. Raises ValueError without an item.
    """
    if not values:
        raise ValueError("a share of no item has no interval")
    mean = math.fsum(values) / len(values)
    errors: dict[Hashable, float] = {}
    for value, name in zip(values, cluster, strict=True):
        errors[name] = errors.get(name, 0.0) + value - mean
    by_items = math.fsum((value - mean) ** 2 for value in values)
    by_clusters = math.fsum(error**2 for error in errors.values())
    if min(values) == max(values):
        return wilson(mean, len(errors))
    # Where items of a cluster differ more than others, it may seem as if there were more of them: that is not claimed.
    effective = len(values) * by_items / by_clusters if by_clusters > by_items else float(len(values))
    return wilson(mean, effective)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share of ``count`` items, which may be a fraction."""
    share = min(max(share, 0.0), 1.0)
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / (1 + Z * Z / count)
    return max(0.0, middle - half), min(1.0, middle + half)
