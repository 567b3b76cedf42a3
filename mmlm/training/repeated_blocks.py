"""The blocks that a model is a stack of, and how each is run: compiled, or with activation checkpointing.

Either replaces the ``forward`` of a block, and nothing else: names of parameters stay, and hooks (of sharding, of gated
cross-attention) run around it.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

RECOMPILES = 8
"""Compiled variants that each block may have: shapes fixed and free, with and without what a call leaves out."""
CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")
"""Arguments by which a block is handed what it has seen before."""


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers (or stages) that a model's parts are stacks of, in order.

    They are the members of the outermost ``ModuleList`` or ``Sequential`` whose members are all of one class, have
    parameters, and are made of other modules (a stack of bare linear layers is no stack of blocks).
    """
    found: dict[nn.Module, None] = {}
    for child in model.children():
        # A block that two parts share is found twice, and listed once.
        found |= dict.fromkeys(child.children() if _is_stack(child) else repeated_blocks(child))
    return list(found)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a stack of equal blocks. All of one class: each is compiled and sharded in the same way."""
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        return False
    alike = len({type(member) for member in module}) == 1
    return alike and all(any(member.children()) and any(True for _ in member.parameters()) for member in module)


def compile_blocks(blocks: Collection[nn.Module]) -> None:
    """Compiles the blocks' forward for passes with gradients: others (evaluation, embedding ahead) stay as they are.

    Hooks of a block (sharding, gated cross-attention) run outside. Blocks of one class share what is compiled, and
    lengths that change are compiled once more, for all of them. Random numbers are torch's own, so that dropout is that
    of a pass that is not compiled. The graph of a pass may be differentiated several times, as a diagnosis does.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILES * len(blocks))
    # Else the first backward pass through a block writes into what its forward pass has kept. This takes as much more
    # memory as one block keeps, while its backward pass runs.
    torch._functorch.config.donated_buffer = False
    for block in blocks:
        compiled = torch.compile(block.forward, options={"fallback_random": True})
        block.forward = _with_gradients(compiled, block.forward)


def _with_gradients(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    """Calls ``first`` where gradients are computed and ``second`` where they are not."""

    @functools.wraps(second)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (first if torch.is_grad_enabled() else second)(*args, **kwargs)

    return forward


def checkpoint_blocks(blocks: Collection[nn.Module]) -> None:
    """Lets each block keep nothing but its input for the backward pass, which computes it again (arXiv:1604.06174).

    With the same random numbers, so that gradients are the same to the last bit.
    """
    for block in blocks:
        block.forward = _checkpointed(block.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        # What a cache holds would be appended to it again.
        if not torch.is_grad_enabled() or any(kwargs.get(name) is not None for name in CACHES):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return checkpointed
