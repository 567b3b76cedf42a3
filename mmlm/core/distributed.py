"""Ranks, sums over ranks, and a gather that gradients flow back through. With one process all of it is the identity."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mmlm.core.errors import UserError

Value = TypeVar("Value")


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


def gather_objects(value: Value) -> list[Value]:
    """Every rank's ``value`` (anything that can be pickled; tensors on the CPU), in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Value] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Value, source: int) -> Value:
    """The ``value`` of rank ``source`` (anything that can be pickled; tensors on the CPU); others' is not looked at."""
    if world_size() == 1:
        return value
    values = [value if rank() == source else None]
    dist.broadcast_object_list(values, src=source)
    return values[0]


def gather_results(work: Callable[[], Value]) -> list[Value]:
    """What ``work`` returns on every rank (as for ``gather_objects``), in rank order; on all ranks or on none.

    An error on any rank ends all of them, as in ``agreed``, rather than leaving the others to wait for that rank.
    ``work`` may not talk to other ranks.
    """
    with agreed(dist.group.WORLD if world_size() > 1 else None):
        value = work()
    return gather_objects(value)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that is sharded over ranks (a ``DTensor``; all ranks take part); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded over ranks, sharing its memory; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(model: DTensor, tensor: Tensor) -> DTensor:
    """A full tensor, which every rank has, sharded like another one of its shape: each rank cuts its own part out."""
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


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


class OtherRankFailed(RuntimeError):  # noqa: N818 - the error itself is raised where it happened
    """Another rank has met a bug, and has told it."""


@contextmanager
def agreed(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Ends in the same way on every rank of ``group``: where the body fails on one, all of them raise.

    The rank where it failed raises what it was; the others the same UserError if it was one, and otherwise an
    OtherRankFailed that names the first such rank. All ranks have to come here, and a body may have collectives only if
    they fail on all ranks or on none. Without a group it is this process's own affair.
    """
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    if group is not None:
        said: list[tuple[str, bool] | None] = [None] * dist.get_world_size(group)
        mistake = isinstance(mine, UserError)
        own = None if mine is None else (str(mine) if mistake else f"{type(mine).__name__}: {mine}", mistake)
        dist.all_gather_object(said, own, group)
        failed = next((number for number, one in enumerate(said) if one is not None), None)
        if mine is None and failed is not None:
            message, is_user_error = said[failed]
            raise UserError(message) if is_user_error else OtherRankFailed(f"rank {failed}: {message}")
    if mine is not None:
        raise mine


def on_rank_zero(work: Callable[[], Value]) -> Value | None:
    """Runs ``work`` on rank 0 and returns what it returns, None on the others. All ranks call it together.

    An error in ``work`` is raised on every rank; see ``agreed``.
    """
    result = None
    with agreed(dist.group.WORLD if world_size() > 1 else None):
        if rank() == 0:
            result = work()
    return result
