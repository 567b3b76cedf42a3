"""Ranks, sums over ranks, and a gather that gradients flow back through. With one process all of it is the identity."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mmlm.errors import UserError

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


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``Replicated`` or DDP: names without ``module.`` in front; any other module itself."""
    while isinstance(module, Replicated | DistributedDataParallel):
        module = module.module
    return module


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


# Gradients summed over ranks

_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False}
"""Buffers are not sent around at every step: running means are reduced by who keeps them. (The newer name, then that of
torch 2.11.)"""


def sum_gradients(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A communication hook of DDP that sums over ranks, where DDP would average."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class Replicated(nn.Module):
    """A module that every rank holds all of: its gradients are summed over ranks (DDP), its weights start as rank 0's.

    What trains may change between steps, on all ranks alike: DDP, which looks at it once, is then made anew.

    Args:
        module: what is trained.
        bucket_mb: megabytes of gradients that are reduced together.
        gradient_as_bucket_view: gradients are views into what is reduced.
    """

    def __init__(self, module: nn.Module, bucket_mb: int = 25, gradient_as_bucket_view: bool = True) -> None:
        super().__init__()
        self.module = module
        self.bucket_mb, self.gradient_as_bucket_view = bucket_mb, gradient_as_bucket_view
        self._trained: list[str] = []
        self._reducer: list[DistributedDataParallel] = []  # in a list, so that it is no part of this module
        self._reducing = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module makes of it; its backward pass sums gradients, unless within ``no_sync``."""
        trained = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        if trained != self._trained:
            self._reducer = [self._make_reducer(is_first=not self._trained)]
            self._trained = trained
        reducer = self._reducer[0]
        reducer.require_backward_grad_sync = self._reducing
        return reducer(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of passes within stay on their rank."""
        self._reducing = False
        try:
            yield
        finally:
            self._reducing = True

    def _make_reducer(self, is_first: bool) -> DistributedDataParallel:
        self._reducer.clear()  # its hooks go with it
        reducer = DistributedDataParallel(
            self.module,
            bucket_cap_mb=self.bucket_mb,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            init_sync=is_first,
            **_NO_BUFFERS,
        )
        reducer.register_comm_hook(None, sum_gradients)
        return reducer
