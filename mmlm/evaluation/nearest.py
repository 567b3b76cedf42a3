"""The nearest of many vectors, exactly: all are compared, some at a time."""

import torch
from torch import Tensor

AT_ONCE = 16384
"""Vectors that are compared at a time: 128 MB of float64 at a width of 1024."""
_DECIMALS = 10
"""Far below what float32 vectors are exact to, and far above the rounding of float64 sums."""


def nearest(query: Tensor, vectors: Tensor, top: int, at_once: int = AT_ONCE) -> tuple[Tensor, Tensor]:
    """The ``top`` of ``vectors`` that are most similar to ``query``: (float64[k] similarities, int64[k] rows).

    ``query`` float[E] and ``vectors`` float[N, E] have unit length; k is ``top``, or N if that is less. The most
    similar comes first, and of equal ones the first row. Products are in float64 and rounded, so that equal vectors are
    equally similar and ``at_once`` changes no order.
    """
    query = query.double()
    values, rows = query.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=query.device)
    for first in range(0, len(vectors), at_once):
        similar = vectors[first : first + at_once].double() @ query
        similar = similar.round(decimals=_DECIMALS)
        values = torch.cat([values, similar])
        rows = torch.cat([rows, torch.arange(first, first + len(similar), device=query.device)])
        values, order = values.sort(descending=True, stable=True)
        values, rows = values[:top], rows[order[:top]]
    return values, rows
