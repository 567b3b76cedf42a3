"""Finds parameters of a library's model that its tokens do not depend on, by a trial run, and removes them."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn


def unused_parameters(backbone: nn.Module, tokens: Tensor) -> list[str]:
    """Names of trainable parameters of ``backbone`` that ``tokens`` do not depend on.

    ``tokens`` is the result of a forward pass of ``backbone`` with gradients on. Works on the meta device.
    """
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def leave_out_unused(backbone: nn.Module, unused: Collection[str]) -> None:
    """Removes the ``unused`` parameters: they would stall DDP, which waits for their gradients, and inflate counts.

    A module whose parameters are all unused becomes an identity, since the model's forward may still call it and ignore
    the result; the largest such module is taken. Any other unused parameter becomes None.
    """
    used = [name for name, _ in backbone.named_parameters() if name not in unused]
    modules = set()
    for name in unused:
        # Paths from the outermost module to the parameter's own; the first without a used parameter is the largest.
        parents = name.split(".")[:-1]
        paths = (".".join(parents[: i + 1]) for i in range(len(parents)))
        whole = next((path for path in paths if not any(other.startswith(f"{path}.") for other in used)), None)
        if whole is None:
            setattr(backbone.get_submodule(".".join(parents)), name.split(".")[-1], None)
        else:
            modules.add(whole)
    leave_out(backbone, modules)


def leave_out(backbone: nn.Module, paths: Iterable[str]) -> None:
    """Replaces each module of ``backbone`` in ``paths`` by an identity."""
    for path in paths:
        parent, _, last = path.rpartition(".")
        setattr(backbone.get_submodule(parent), last, nn.Identity())
