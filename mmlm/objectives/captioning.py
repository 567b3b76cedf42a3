"""Captioning: cross-entropy of each next token."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.distributed import sum_over_ranks
from mmlm.errors import UserError
from mmlm.flow import Batch, Loss, ModelOutput, Term, View


def token_losses(hidden: Tensor, head_weight: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each position: float[P, D], float32[V, D], int64[P] -> float32[P], in float32."""
    logits = F.linear(hidden, head_weight).float()
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


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
        logits = F.linear(output.hidden, output.head_weight).float()
        losses = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.label_smoothing)
        count = sum_over_ranks(batch.num_targets).to(losses.dtype)
        correct = (logits.detach().argmax(dim=-1) == targets).sum()
        return Loss({"captioning": Term(losses, count)}, {"accuracy": sum_over_ranks(correct) / count})
