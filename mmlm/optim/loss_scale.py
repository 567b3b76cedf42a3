"""The dynamic loss scale of float16 training: keeps small gradients from becoming 0 in the backward pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000
"""Steps without overflow after which the scale is doubled (the values of PyTorch's ``GradScaler``)."""


@dataclass
class LossScale:
    """A dynamic loss scale (Mixed Precision Training, arXiv:1710.03740), kept on the device: no CPU waits for it.

    The loss is multiplied by the scale before the backward pass, and gradients are divided by the scale after it. If
    gradients overflow, the scale is halved and the step is skipped. ``GROWTH_STEPS`` steps without overflow double it.
    The scale is a power of two, so that multiplying and dividing round nothing, and at least 1.
    """

    scale: Tensor
    """float32[]: the current scale."""
    steps: Tensor
    """float32[]: finite steps since the scale last changed."""

    @classmethod
    def start(cls, device: torch.device) -> "LossScale":
        """The loss scale at the start of a run."""
        return cls(torch.full((), FIRST_SCALE, device=device), torch.zeros((), device=device))

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale, in place. Entries that have overflowed stay infinite or NaN."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    @torch.no_grad()
    def update(self, overflowed: Tensor, finite: Tensor) -> None:
        """Called after a step: bool[] ``overflowed`` halves the scale, bool[] ``finite`` counts towards doubling it.

        Both may be false: a loss that is not finite by itself says nothing of the scale.
        """
        # Both outcomes are computed and torch.where takes one: an `if` would have to read the flag from the device.
        steps = self.steps + finite
        grown = steps >= GROWTH_STEPS
        halved = (self.scale / 2).clamp(min=1)
        self.scale = torch.where(overflowed, halved, torch.where(grown, self.scale * 2, self.scale))
        self.steps = torch.where(overflowed | grown, torch.zeros_like(steps), steps)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as Python numbers."""
        return {"scale": self.scale.item(), "steps": self.steps.item()}

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> "LossScale":
        """A loss scale with the state that ``state_dict`` returned."""
        return cls(*(torch.tensor(state[name], device=device) for name in ("scale", "steps")))
