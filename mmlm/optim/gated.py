"""Optimizer steps that are skipped, on the device, if a gradient is not finite.

One infinite or NaN gradient would spoil weights and optimizer state for good. Whether there is one is known on the
device only, and reading it there would make the CPU wait for the GPU at every step. So the device itself makes or skips
the update, and the CPU learns of it later.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmlm.optim.optimizers import Optimizer, members


def step_unless(optimizer: Optimizer, skip: Tensor) -> None:
    """Makes an optimizer step unless bool[] ``skip`` is true; then parameters and state stay as they are, bit for bit.

    torch's fused optimizers and our Muon skip by themselves (``found_inf``, as torch's ``GradScaler`` uses it). For any
    other optimizer, parameters and state are copied before the step and put back after it, which takes the memory of
    one more copy. A counter that such an optimizer keeps on the CPU (a Python number, or a tensor on another device
    than its parameters) counts skipped steps too.
    """
    for member in members(optimizer):
        if getattr(member, "_step_supports_amp_scaling", False):
            member.found_inf = skip.float()
            try:
                member.step()
            finally:
                # If it stayed, a later step that is not gated would depend on it too.
                del member.found_inf
        else:
            _step_and_put_back(member, skip)


def _step_and_put_back(optimizer: Any, skip: Tensor) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    copies = [parameter.detach().clone() for parameter in parameters]
    before = {p: _copied(optimizer.state[p]) for p in parameters if p in optimizer.state}
    optimizer.step()
    for parameter, copy in zip(parameters, copies, strict=True):
        _put_back(parameter.detach(), copy, skip)
    for parameter in parameters:
        kept = before.get(parameter, {})
        for name, tensor in optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, Tensor) and tensor.device == parameter.device:
                # State that this very step created goes back to 0, its value before a first step.
                _put_back(tensor, kept.get(name, torch.zeros_like(tensor)), skip)


def _copied(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, Tensor)}


@torch.no_grad()
def _put_back(tensor: Tensor, before: Tensor, skip: Tensor) -> None:
    tensor.copy_(torch.where(skip, before, tensor))


class BuffersBefore:
    """A copy of a module's buffers from before a forward pass, which may change them (running means)."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copies = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def put_back(self, skip: Tensor) -> None:
        """Restores the buffers if bool[] ``skip`` is true. Buffers that the forward pass has added stay."""
        for name, buffer in self._module.named_buffers():
            if name in self._copies:
                _put_back(buffer, self._copies[name], skip)
