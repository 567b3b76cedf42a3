"""Losses of hidden states and an output projection whose gradients are made together with their values."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True)
class NeededGradients:
    """Which gradients are needed. What is frozen is not computed and takes no memory."""

    hidden: bool
    head: bool

    @classmethod
    def by(cls, hidden: Tensor, head_weight: Tensor) -> "NeededGradients":
        """What autograd would record now."""
        recording = torch.is_grad_enabled()
        return cls(recording and hidden.requires_grad, recording and head_weight.requires_grad)

    @property
    def any(self) -> bool:
        """Whether there is a backward pass."""
        return self.hidden or self.head


@dataclass(frozen=True)
class LossAndGradients:
    """The loss of all rows, and its gradients where they were wanted."""

    loss_sum: Tensor
    """float32[] (float64 of float64 inputs)."""
    correct: Tensor
    """int64[]: rows that were predicted right."""
    hidden_gradient: Tensor | None
    """float[P, D]."""
    head_gradient: Tensor | None
    """float[V, D]."""


FusedLoss = Callable[[Tensor, Tensor, NeededGradients], LossAndGradients]
"""Hidden states float[P, D] and head weight float[V, D], both without gradient -> the loss."""


def with_known_gradients(compute: FusedLoss, hidden: Tensor, head_weight: Tensor) -> tuple[Tensor, Tensor]:
    """``compute`` as a part of the graph -> (loss_sum float32[], correct int64[]).

    Backward multiplies the stored gradients by the gradient of ``loss_sum`` and leaves them as they are, so that a
    retained graph can be gone through again. Gradients of gradients do not exist: RuntimeError.
    """
    return _GradientsInForward.apply(hidden, head_weight, compute, NeededGradients.by(hidden, head_weight))


class _GradientsInForward(torch.autograd.Function):
    """Autograd's view of a ``FusedLoss``. Gradients are switched off in forward, so ``wanted`` is given."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, head_weight: Tensor, compute: FusedLoss, wanted: NeededGradients
    ) -> tuple[Tensor, Tensor]:
        summed = compute(hidden.detach(), head_weight.detach(), wanted)
        ctx.save_for_backward(summed.hidden_gradient, summed.head_gradient)
        ctx.mark_non_differentiable(summed.correct)
        return summed.loss_sum, summed.correct

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: autograd would take the stored gradients for constants
            raise RuntimeError("a loss whose gradients are made in forward has no gradients of gradients")
        scaled = (None if stored is None else stored * gradient for stored in ctx.saved_tensors)
        return (*scaled, None, None)
