"""What the objectives on text share: whose captions count, states and targets at chosen positions, mask embeddings."""

from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.errors import UserError
from mmlm.flow import TEXT_ONLY, Batch, ModelSizes

Captions = Literal["all", "with_image"]
"""The captions that count: all of the batch, or only those that belong to an image."""

INIT_STD = 0.02
"""Standard deviation of a mask embedding at the start: that of token embeddings (BERT, GPT-2)."""


def counted(batch: Batch, captions: Captions) -> Tensor:
    """bool[C]: whether each caption of the batch counts."""
    if captions == "all":
        return torch.ones_like(batch.image_index, dtype=torch.bool)
    return batch.image_index != TEXT_ONLY


def states_at(hidden: Tensor, batch: Batch, chosen: Tensor) -> Tensor:
    """The states float[P, D] of a text view -> float[S, D] of the positions where bool[C, T - 1] ``chosen`` is true.

    They have to lie within ``batch.target_mask``. Row-major, as ``batch.targets[chosen]`` is.
    """
    return hidden[chosen[batch.target_mask]]


def new_mask_embedding(sizes: ModelSizes, owner: str) -> nn.Parameter:
    """float32[D] from normal(0, 0.02): what stands in place of masked inputs. UserError without a decoder."""
    if sizes.decoder_width is None:
        raise UserError(f"objective: {owner} needs a decoder, and there is none; choose one")
    return nn.Parameter(nn.init.normal_(torch.empty(sizes.decoder_width), std=INIT_STD))


def check_label_smoothing(label_smoothing: float) -> None:
    """UserError for a share that is none."""
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")
