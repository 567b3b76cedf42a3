"""95% intervals of scores, and the level of chance of a retrieval. Items of one concept are not taken for independent.

Two drawings of one thing are found, or missed, together more often than drawings of two things. An interval that took
them for independent would be too narrow, so both kinds here go by *clusters*, the items of one concept:

- A share has Wilson's interval (JASA 1927) with an effective number of items: their number divided by the design
  effect, the variance of the share by clusters over that by items (Kish, Survey Sampling, 1965; with Wilson's interval:
  Dean and Pagano, JSSAM 2015). If every item is a cluster of its own, it is Wilson's plain interval.
- Any other score has the percentile interval of a bootstrap that draws clusters (Field and Welsh, JRSS B 2007).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

Z = 1.959963984540054
"""The standard normal distribution lies between -Z and Z with a probability of 95%."""
RESAMPLES = 1000
"""Draws of a bootstrap."""
DRAWS_AT_ONCE = 4_000_000
"""Clusters drawn at a time, to bound the bootstrap's memory (8 bytes each, a few copies)."""


def share_interval(right: Tensor, cluster: Tensor) -> tuple[float, float]:
    """The interval of the mean of ``right`` [n], values in [0, 1]; ``cluster`` int64[n] numbers what belongs together.

    Where all values are equal nothing shows how much items of a cluster have in common; the number of clusters counts
    then. Raises ValueError without an item.
    """
    if not len(right):
        raise ValueError("a share of no item has no interval")
    values = right.detach().cpu().double()
    _, group, counts = cluster.cpu().unique(return_inverse=True, return_counts=True)
    mean = values.mean()
    error = values - mean
    by_items = (error**2).sum().item()
    by_clusters = (error.new_zeros(len(counts)).index_add(0, group, error) ** 2).sum().item()
    effective = len(values) * by_items / by_clusters if by_clusters > 0 and by_items > 0 else float(len(counts))
    # Clusters of which one half is right may seem to tell more than as many independent items: that is not claimed.
    return wilson(mean.item(), min(effective, float(len(values))))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share of ``count`` items, which may be a fraction."""
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / (1 + Z * Z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_intervals(values: Tensor, cluster: Tensor, seed: int = 0, resamples: int = RESAMPLES) -> Tensor:
    """float64[k, 2]: the lower and upper end for the means of the k columns of ``values`` float[n, k].

    All columns are drawn together. Raises ValueError without an item.
    """
    if not len(values):
        raise ValueError("a mean of no item has no interval")
    ones = values.new_ones(len(values), 1)
    drawn = resampled_sums(torch.cat([values, ones], dim=1), cluster, seed, resamples)
    return percentiles(drawn[:, :-1] / drawn[:, -1:]).T


def resampled_sums(values: Tensor, cluster: Tensor, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """float64[resamples, k]: sums of the columns of ``values`` [n, k] over clusters drawn with replacement.

    Each time as many clusters are drawn as there are, each with all of its items. On the CPU, and a function of the
    arguments only.
    """
    _, group, counts = cluster.cpu().unique(return_inverse=True, return_counts=True)
    values = values.detach().cpu().double()
    sums = values.new_zeros(len(counts), values.shape[1]).index_add(0, group, values)
    return torch.cat([times @ sums for times in _draws(len(counts), seed, resamples)])


def percentiles(drawn: Tensor, confidence: float = 0.95) -> Tensor:
    """float64[2, ...]: the ends of the middle ``confidence`` of the draws, which are the rows of ``drawn``."""
    tail = (1 - confidence) / 2
    return torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)


def _draws(clusters: int, seed: int, resamples: int) -> Iterator[Tensor]:
    """Yields float64[r, clusters], how often each cluster is drawn; ``resamples`` rows in all."""
    generator = torch.Generator().manual_seed(seed)
    rows_at_once = max(1, DRAWS_AT_ONCE // clusters)
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        drawn = torch.randint(clusters, (rows, clusters), generator=generator)
        ones = torch.ones(1, 1, dtype=torch.float64).expand(rows, clusters)
        yield torch.zeros(rows, clusters, dtype=torch.float64).scatter_add_(1, drawn, ones)


def recall_by_chance(positives: Tensor, candidates: int, cutoff: int) -> float:
    """R@cutoff of candidates in random order, where query i has ``positives[i]`` (int64[Q]) right ones.

    Of K candidates with p right ones, the first k miss all with the probability (K-p)/K * (K-p-1)/(K-1) * ..., k times.
    """
    wrong = (candidates - positives).double()
    places = torch.arange(min(cutoff, candidates), dtype=torch.float64)
    missed = ((wrong[:, None] - places).clamp(min=0) / (candidates - places)).prod(dim=1)
    return (1 - missed).mean().item()
