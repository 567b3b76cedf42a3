"""Captioning: cross-entropy of each next token."""

import torch
import torch.nn.functional as F
from torch import nn

from mmlm.distributed import sum_over_ranks
from mmlm.errors import UserError
from mmlm.flow import Batch, Loss, ModelOutput, Term, View

IGNORED = -100
"""Target of a filler row: no loss and never right."""
ROW_MULTIPLE = 64
"""Rows of logits are rounded up to a multiple of this, so that few shapes of kernel are needed (see Layout)."""


class Captioning(nn.Module):
    """Causal language modelling of the caption given the image (CoCa, arXiv:2205.01917, equation 3)::

        loss = - sum_{c, t} log p(target[c, t] | inputs[c, <= t], image) / number of real targets of all ranks

    Every real token weighs the same, whatever caption or rank it is in; the paper sums over a caption's tokens and
    averages over captions. Logits exist at real positions only. ``label_smoothing`` as in arXiv:1512.00567.
    """

    views = frozenset({View.CAPTION})

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")
        self.label_smoothing = label_smoothing

    def forward(self, output: ModelOutput, batch: Batch) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of tokens predicted right)."""
        targets = batch.targets[batch.target_mask]
        filler = -len(targets) % ROW_MULTIPLE
        hidden, targets = F.pad(output.hidden, (0, 0, 0, filler)), F.pad(targets, (0, filler), value=IGNORED)
        logits = F.linear(hidden, output.head_weight)
        # At least float32: a softmax over thousands of words is too much for half precision.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        smoothing = self.label_smoothing
        losses = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
        # At least 1: a batch without captions has loss 0, not 0 / 0.
        count = sum_over_ranks(batch.num_targets).clamp(min=1).to(losses.dtype)
        correct = (logits.detach().argmax(dim=-1) == targets).sum()
        return Loss({"captioning": Term(losses, count)}, {"accuracy": sum_over_ranks(correct) / count})
