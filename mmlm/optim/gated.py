"""Optimizer steps that may turn out not to have been made, without the host ever asking the device whether.

A gradient that is not a number would spoil weights and moments for good. Whether one is there is known on the device
only; so the update is made dependent on it there, and whoever needs to know reads it later.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmlm.optim.optimizers import Optimizer, members


def step_unless(optimizer: Optimizer, skip: Tensor) -> None:
    """Makes an optimizer step, unless bool[] ``skip`` is true: then parameters and state stay bit for bit.

    torch's fused optimizers and our Muon can be told so (``found_inf``, as torch's ``GradScaler`` does). For others
    parameters and state are copied and put back, in memory for one more copy of them; a count that such an optimizer
    keeps on the host (a Python number, or a tensor on another device than its parameters) counts the skipped step too.
    """
    for member in members(optimizer):
        if getattr(member, "_step_supports_amp_scaling", False):
            member.found_inf = skip.float()
            try:
                member.step()
            finally:
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
                # What this step made starts from 0, as it would have if the next one had been the first.
                _put_back(tensor, kept.get(name, torch.zeros_like(tensor)), skip)


def _copied(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, Tensor)}


@torch.no_grad()
def _put_back(tensor: Tensor, before: Tensor, skip: Tensor) -> None:
    tensor.copy_(torch.where(skip, before, tensor))


class BuffersBefore:
    """A copy of a module's buffers from before a forward pass, which may move them (running means)."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copies = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def put_back(self, skip: Tensor) -> None:
        """Restores them if bool[] ``skip`` is true."""
        for name, buffer in self._module.named_buffers():
            if name in self._copies:
                _put_back(buffer, self._copies[name], skip)
