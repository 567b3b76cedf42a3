"""95% intervals of scores that are no shares, by a bootstrap over concepts; and what chance gives in retrieval.

Items of one concept are not independent (see ``core/intervals.py``, which has the intervals of shares). So it is
concepts that are drawn, each with all of its items (the cluster bootstrap: Field and Welsh, JRSS B 2007).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

RESAMPLES = 1000
"""Draws of a bootstrap."""
DRAWS_AT_ONCE = 4_000_000
"""Clusters drawn at a time, to bound the bootstrap's memory (8 bytes each, a few copies)."""


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
