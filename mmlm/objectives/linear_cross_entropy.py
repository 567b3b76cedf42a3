"""Cross-entropy of tokens, from hidden states."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target of a filler row: no loss and never right."""
ROW_MULTIPLE = 64
"""Rows of logits are rounded up to a multiple of this, so that few shapes of kernel are needed (see Layout)."""


def token_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Hidden states float[P, D], head_weight float[V, D], targets int64[P] -> (loss_sum float32[], correct int64[])."""
    filler = -len(targets) % ROW_MULTIPLE
    hidden = F.pad(hidden, (0, 0, 0, filler))
    targets = F.pad(targets, (0, filler), value=IGNORED)
    logits = F.linear(hidden, head_weight)
    # At least float32: a softmax over thousands of words is too much for half precision.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=label_smoothing)
    return losses, (logits.detach().argmax(dim=-1) == targets).sum()
