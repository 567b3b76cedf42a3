"""Ranks, sums over ranks, and a gather that gradients flow back through. With one process all of it is the identity."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Ranks, W; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every rank's ``value`` (any shape), without gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def max_over_ranks(value: Tensor) -> Tensor:
    """The largest of every rank's ``value``, entry by entry (any shape), without gradient."""
    largest = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def anywhere(holds: bool, device: torch.device) -> bool:
    """Whether something holds on at least one rank; ``device`` is where a tensor can be reduced."""
    if world_size() == 1:
        return holds
    return bool(sum_over_ranks(torch.tensor(float(holds), device=device)))


class _Gather(torch.autograd.Function):
    """Concatenates equally shaped tensors of all ranks; backward sums the gradients that all ranks have for ours.

    ``torch.distributed.nn.functional.all_gather`` does the same through all-to-all, which gloo lacks for some types.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        ctx.size = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = rank() * ctx.size
        return total[start : start + ctx.size]


def gather(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order: [n_r, ...] on rank r -> [sum of n_r, ...]; ranks may hold unequal counts.

    The gradient of a rank's rows is the *sum* of what all ranks' losses have for them, so that a loss made of local
    sums over global counts has the gradient of one process on the joined batch once parameters' gradients are summed.
    """
    if world_size() == 1:
        return local
    size = torch.tensor([len(local)], device=local.device)
    sizes = [torch.empty_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    counts = [int(s) for s in sizes]
    longest = max(counts)
    padded = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    everyone = _Gather.apply(padded) if local.is_floating_point() else _gather_plain(padded)
    return torch.cat([everyone[r * longest : r * longest + n] for r, n in enumerate(counts)])


def _gather_plain(local: Tensor) -> Tensor:
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)
