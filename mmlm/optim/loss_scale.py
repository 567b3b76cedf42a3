"""The loss scale of float16: gradients too small for it are made large before the backward pass, and small after it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000
"""Steps without overflow after which the scale is doubled."""


@dataclass
class LossScale:
    """A dynamic loss scale (Mixed Precision Training, arXiv:1710.03740), kept on the device: nothing waits for it.

    The loss is multiplied by it before the backward pass and gradients are divided by it after. Gradients that overflow
    halve it, and the step is left out; ``GROWTH_STEPS`` steps without overflow double it. It is a power of two, so that
    multiplying and dividing rounds nothing, and never below 1.
    """

    scale: Tensor
    """float32[]."""
    steps: Tensor
    """float32[]: since it last changed."""

    @classmethod
    def start(cls, device: torch.device) -> "LossScale":
        """That of a new run."""
        return cls(torch.full((), FIRST_SCALE, device=device), torch.zeros((), device=device))

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale, in place; what has overflowed stays infinite or not a number."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    @torch.no_grad()
    def update(self, overflowed: Tensor, finite: Tensor) -> None:
        """After a step: bool[] ``overflowed`` lowers the scale, bool[] ``finite`` counts for raising it."""
        steps = self.steps + finite
        grown = steps >= GROWTH_STEPS
        halved = (self.scale / 2).clamp(min=1)
        self.scale = torch.where(overflowed, halved, torch.where(grown, self.scale * 2, self.scale))
        self.steps = torch.where(overflowed | grown, torch.zeros_like(steps), steps)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"scale": self.scale.item(), "steps": self.steps.item()}

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> "LossScale":
        """From what ``state_dict`` returned."""
        return cls(*(torch.tensor(state[name], device=device) for name in ("scale", "steps")))
