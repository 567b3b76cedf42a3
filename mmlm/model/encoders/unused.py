"""Parts of a library's model that its tokens do not depend on: found by a trial run, then left out."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn


def unused_parameters(backbone: nn.Module, tokens: Tensor) -> list[str]:
    """Names of the parameters of ``backbone`` that ``tokens``, made by it with gradients on, do not depend on."""
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def leave_out_unused(backbone: nn.Module, unused: Collection[str]) -> None:
    """Takes out ``unused``, as parameters without a gradient stall distributed training and mislead a count.

    The largest modules of which every parameter is unused become identities (a forward may still call them and ignore
    the result); a lone parameter becomes None.
    """
    used = [name for name, _ in backbone.named_parameters() if name not in unused]
    modules = set()
    for name in unused:
        parents = name.split(".")[:-1]
        paths = (".".join(parents[: i + 1]) for i in range(len(parents)))
        whole = next((path for path in paths if not any(other.startswith(f"{path}.") for other in used)), None)
        if whole is None:
            setattr(backbone.get_submodule(".".join(parents)), name.split(".")[-1], None)
        else:
            modules.add(whole)
    leave_out(backbone, modules)


def leave_out(backbone: nn.Module, paths: Iterable[str]) -> None:
    """Puts an identity in the place of each module."""
    for path in paths:
        parent, _, last = path.rpartition(".")
        setattr(backbone.get_submodule(parent), last, nn.Identity())
