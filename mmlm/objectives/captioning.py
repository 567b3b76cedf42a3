"""Captioning: cross-entropy of each next token."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.errors import UserError
from mmlm.flow import CAPTION, Batch, Loss, ModelOutput, Moment, Term
from mmlm.objectives.objective import Objective

IGNORED = -100
"""Target of a filler row: no loss and never right."""
ROW_MULTIPLE = 64
"""Rows of logits are rounded up to a multiple of this, so that few shapes of kernel are needed (see Layout)."""


class Captioning(Objective):
    """Causal language modelling of the caption given the image (CoCa, arXiv:2205.01917, equation 3)::

        loss = - sum_{c, t} log p(target[c, t] | inputs[c, <= t], image) / number of real targets of all ranks

    Every real token weighs the same, whatever caption or rank it is in; the paper sums over a caption's tokens and
    averages over captions. Logits exist at real positions only. ``label_smoothing`` as in arXiv:1512.00567.
    """

    views = frozenset({CAPTION})

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")
        self.label_smoothing = label_smoothing

    def counts(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The supervised tokens."""
        return {"tokens": batch.num_targets}

    def forward(self, output: ModelOutput, batch: Batch, moment: Moment, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of tokens predicted right)."""
        targets = batch.targets[batch.target_mask]
        filler = -len(targets) % ROW_MULTIPLE
        hidden = F.pad(output.hidden[CAPTION], (0, 0, 0, filler))
        targets = F.pad(targets, (0, filler), value=IGNORED)
        logits = F.linear(hidden, output.head_weight)
        # At least float32: a softmax over thousands of words is too much for half precision.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        smoothing = self.label_smoothing
        losses = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
        count = counts["tokens"].to(losses.dtype)
        correct = (logits.detach().argmax(dim=-1) == targets).sum()
        term = Term(losses, count, of_tokens=smoothing == 0)
        return Loss({"captioning": term}, {"accuracy": Term(correct, count)})
