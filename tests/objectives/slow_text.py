"""Token cross-entropy as a loop over its definition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlm.core.batch import Batch


def slow_mean(
    hidden: Tensor, head: Tensor, batch: Batch, wanted: Sequence[tuple[int, int, int]], smoothing: float = 0.0
) -> Tensor:
    """Mean of ``- log p(token)`` over (caption, position, token), read from the float[P, D] states of a text view."""
    firsts = [0, *(batch.lengths - 1).cumsum(0).tolist()]
    losses = []
    for caption, position, token in wanted:
        scores = head @ hidden[firsts[caption] + position]
        log_p = scores - scores.exp().sum().log()
        losses.append(-(1 - smoothing) * log_p[token] - smoothing * log_p.mean())
    return torch.stack(losses).sum() / len(losses)


def slow_accuracy(hidden: Tensor, head: Tensor, batch: Batch, wanted: Sequence[tuple[int, int, int]]) -> float:
    """The share of (caption, position, token) whose token scores highest."""
    firsts = [0, *(batch.lengths - 1).cumsum(0).tolist()]
    right = [int((head @ hidden[firsts[c] + t]).argmax()) == token for c, t, token in wanted]
    return sum(right) / len(right)


def assert_same_gradients(loss: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    """Of two losses, to 1e-10."""
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    theirs = torch.autograd.grad(expected, inputs)
    for one, other in zip(torch.autograd.grad(loss, inputs), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
