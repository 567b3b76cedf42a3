"""Losses of hidden states and an output projection that compute their gradients in the forward pass.

A fused loss has the logits of a chunk of rows at hand only while it computes their loss. It makes the gradients there
and then; the backward pass only scales them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True)
class NeededGradients:
    """Which gradients are needed. The gradient of a frozen input is not computed and takes no memory."""

    hidden: bool
    """The gradient with respect to the hidden states."""
    head: bool
    """The gradient with respect to the head's weight."""

    @classmethod
    def by(cls, hidden: Tensor, head_weight: Tensor) -> "NeededGradients":
        """The gradients that autograd would record at this point."""
        recording = torch.is_grad_enabled()
        return cls(recording and hidden.requires_grad, recording and head_weight.requires_grad)

    @property
    def any(self) -> bool:
        """True if there will be a backward pass."""
        return self.hidden or self.head


@dataclass(frozen=True)
class LossAndGradients:
    """The loss of all rows, and its gradients where they are needed."""

    loss_sum: Tensor
    """float32[] (float64 of float64 inputs)."""
    correct: Tensor
    """int64[]: number of rows whose likeliest token is the target."""
    hidden_gradient: Tensor | None
    """float[P, D]: gradient of ``loss_sum``, or None if it is not needed."""
    head_gradient: Tensor | None
    """float[V, D]: gradient of ``loss_sum``, or None if it is not needed."""


FusedLoss = Callable[[Tensor, Tensor, NeededGradients], LossAndGradients]
"""Hidden states float[P, D] and head weight float[V, D], both detached -> the loss and its needed gradients."""


def with_known_gradients(compute: FusedLoss, hidden: Tensor, head_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Runs ``compute`` as a node of the graph -> (loss_sum float32[], correct int64[]).

    The backward pass multiplies the stored gradients by the gradient of ``loss_sum``. It does not change them in place,
    so a retained graph can be differentiated again. Gradients of gradients (``create_graph``) raise RuntimeError.
    """
    return _GradientsInForward.apply(hidden, head_weight, compute, NeededGradients.by(hidden, head_weight))


class SavingContext(FunctionCtx):
    """Autograd's context of a function, for annotations: torch's own leaves out ``saved_tensors``."""

    saved_tensors: tuple[Tensor, ...]


class _GradientsInForward(torch.autograd.Function):
    """The autograd function around a ``FusedLoss``.

    Autograd is switched off inside of ``forward``, where every tensor seems to need no gradient: hence ``wanted``.
    """

    @staticmethod
    def forward(
        ctx: SavingContext, hidden: Tensor, head_weight: Tensor, compute: FusedLoss, wanted: NeededGradients
    ) -> tuple[Tensor, Tensor]:
        made = compute(hidden.detach(), head_weight.detach(), wanted)
        # torch saves None as well as tensors; its annotation says tensors only.
        ctx.save_for_backward(made.hidden_gradient, made.head_gradient)  # type: ignore[arg-type]
        ctx.mark_non_differentiable(made.correct)
        return made.loss_sum, made.correct

    @staticmethod
    def backward(ctx: SavingContext, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: autograd would treat the stored gradients as constants
            raise RuntimeError("a loss whose gradients are made in forward has no gradients of gradients")
        scaled = (None if stored is None else stored * gradient for stored in ctx.saved_tensors)
        return (*scaled, None, None)
