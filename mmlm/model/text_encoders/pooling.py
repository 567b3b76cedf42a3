"""Pools the states of a text's tokens to one vector."""

from typing import Literal

import torch
from torch import Tensor

from mmlm.model.packing import Layout

Pool = Literal["mean", "cls", "end"]
"""``mean``: average over the real tokens, start and end included; ``cls``: first token; ``end``: end token."""


def pooled(states: Tensor, lengths: Tensor, pool: Pool) -> Tensor:
    """float[C, T, D], int64[C] -> float[C, D]; states at padding do not count."""
    if pool == "cls":
        return states[:, 0]
    if pool == "end":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    real = Layout.mask(lengths, states.shape[1])[..., None]
    return states.masked_fill(~real, 0).sum(dim=1) / lengths[:, None].clamp(min=1)
