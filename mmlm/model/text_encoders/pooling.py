"""One vector for a text from the states of its tokens."""

from typing import Literal

import torch
from torch import Tensor

from mmlm.model.blocks import Layout

Pool = Literal["mean", "cls", "end"]
"""The mean over the real tokens (start and end included), the first token's state, or the end token's."""


def pooled(states: Tensor, lengths: Tensor, pool: Pool) -> Tensor:
    """float[C, T, D], int64[C] -> float[C, D]; what stands at padding does not matter."""
    if pool == "cls":
        return states[:, 0]
    if pool == "end":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    real = Layout.mask(lengths, states.shape[1])[..., None]
    return states.masked_fill(~real, 0).sum(dim=1) / lengths[:, None].clamp(min=1)
