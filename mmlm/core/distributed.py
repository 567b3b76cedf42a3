"""Collectives: sums over ranks, a gather with gradients, and errors that all ranks share.

Without a process group, every function here returns its input: there is one rank, 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mmlm.core.errors import UserError
from mmlm.core.stop import StopAsked

Value = TypeVar("Value")


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks, W; 1 without a process group."""
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
    """Returns on every rank whether ``holds`` is true on at least one of them.

    ``device`` is where the process group can reduce a tensor (nccl: a CUDA device).
    """
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
    """The ``value`` of rank ``source`` (anything that can be pickled; tensors on the CPU); other ranks' is ignored."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=source)
    return values[0]


def gather_results(work: Callable[[], Value]) -> list[Value]:
    """Runs ``work`` on every rank; returns all results in rank order, as ``gather_objects`` does.

    An error of ``work`` on one rank is raised on all ranks, as in ``agreed``: the others do not wait for a result that
    never comes. ``work`` must not communicate with other ranks.
    """
    with agreed(dist.group.WORLD if world_size() > 1 else None):
        value = work()
    return gather_objects(value)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that is sharded over ranks (``DTensor``; every rank calls this); any other is returned as is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This rank's shard of a ``DTensor``, sharing its memory; any other tensor is returned as is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(model: DTensor, tensor: Tensor) -> DTensor:
    """Shards ``tensor`` (full, equal on every rank) like ``model``, a ``DTensor`` of the same shape.

    Each rank cuts its own shard out of its copy; nothing is sent.
    """
    # src_data_rank=None: by default, rank 0 would scatter its copy.
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


class _Gather(torch.autograd.Function):
    """Concatenates equally shaped tensors of all ranks, with a gradient.

    ``torch.distributed.nn.functional.all_gather`` does the same through all-to-all, which gloo lacks for some types.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.size = len(local)
        return _gather_plain(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss reads the rows of every rank. `gradient` is what this rank's loss has for all rows; the sum
        # over ranks is what all losses have for them, of which this rank's rows are its part.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = rank() * ctx.size
        return total[start : start + ctx.size]


def gather(local: Tensor) -> Tensor:
    """Concatenates the rows of all ranks in rank order: [n_r, ...] on rank r -> [sum of n_r, ...]; n_r may differ.

    Backward gives each row the *sum* of the gradients that all ranks' losses have for it. With losses that are local
    sums over global counts, and parameter gradients summed over ranks, the result is the gradient of one process on
    the joined batch.
    """
    if world_size() == 1:
        return local
    size = torch.tensor([len(local)], device=local.device)
    counts = _gather_plain(size).tolist()
    # all_gather wants equal shapes: every rank pads to the longest, and the padding is cut out again below.
    longest = max(counts)
    padded = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    everyone = _Gather.apply(padded) if local.is_floating_point() else _gather_plain(padded)
    return torch.cat([everyone[r * longest : r * longest + n] for r, n in enumerate(counts)])


def _gather_plain(local: Tensor) -> Tensor:
    """Concatenates equally shaped tensors of all ranks, without gradient."""
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


class OtherRankFailed(RuntimeError):  # noqa: N818 - the error itself is raised where it happened
    """Raised on the ranks that did nothing wrong, after another rank has raised the exception that ends the run."""


@contextmanager
def agreed(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Makes the ranks of ``group`` agree on how the body ended: if it raises on one rank, it raises on all.

    The rank where the body failed raises its own exception. The other ranks raise the same UserError if the exception
    was one, and otherwise an OtherRankFailed that names the first failed rank. A StopAsked on one rank is one on all
    ranks, unless another rank has failed. Every rank has to enter this context. The body may call collectives only if
    they fail on all ranks or on none. ``group`` None: nothing is exchanged.
    """
    mine: Exception | StopAsked | None = None
    try:
        yield
    except (Exception, StopAsked) as error:
        mine = error
    if group is not None:
        # Sent by every rank, failed or not: a rank that raised at once would leave the others waiting in this gather.
        said: list[_Said | None] = [None] * dist.get_world_size(group)
        dist.all_gather_object(said, None if mine is None else _said(dist.get_rank(group), mine), group)
        stops = [one for one in said if one is not None and one.kind is StopAsked]
        failed = [one for one in said if one is not None and one.kind is not StopAsked]
        if failed and (mine is None or isinstance(mine, StopAsked)):
            raise _as_elsewhere(failed[0])
        if stops and mine is None:
            raise StopAsked(stops[0].text)
    if mine is not None:
        raise mine


@dataclass(frozen=True)
class _Said:
    """An exception as its rank tells the others. Its text, for the exceptions of some libraries cannot be pickled."""

    rank: int
    kind: type[Exception] | type[StopAsked]
    """UserError, StopAsked, or Exception for all others."""
    text: str


def _said(number: int, error: Exception | StopAsked) -> _Said:
    kind = next((one for one in (UserError, StopAsked) if isinstance(error, one)), Exception)
    return _Said(number, kind, str(error) if kind is not Exception else f"{type(error).__name__}: {error}")


def _as_elsewhere(failed: _Said) -> Exception:
    """What the ranks raise that have not failed themselves."""
    return UserError(failed.text) if failed.kind is UserError else OtherRankFailed(f"rank {failed.rank}: {failed.text}")


def on_rank_zero(work: Callable[[], Value]) -> Value | None:
    """Runs ``work`` on rank 0 and returns what it returns, None on the others. All ranks call it together.

    An error in ``work`` is raised on every rank; see ``agreed``.
    """
    result = None
    with agreed(dist.group.WORLD if world_size() > 1 else None):
        if rank() == 0:
            result = work()
    return result
