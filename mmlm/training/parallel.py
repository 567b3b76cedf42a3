"""How several ranks share a training step: each with all of the model, or with a share of it.

It does not change what is computed: gradients are summed over ranks, since a loss is a local sum over a global count.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from mmlm.core.distributed import world_size
from mmlm.core.errors import ArgumentError, UserError
from mmlm.optim.optimizers import Muon, OptimizerPart
from mmlm.training.repeated_blocks import checkpoint_blocks, compile_blocks, repeated_blocks
from mmlm.training.replicated import Replicated
from mmlm.training.train_step import TrainStep


class Parallel(Protocol):
    """How several ranks share a training step."""

    def wrap(self, train_step: TrainStep, device: torch.device) -> nn.Module:
        """The module to call in place of ``train_step``, which is on ``device``; all ranks take part.

        Before the optimizer is made and the moving average begins: the parameters may become other tensors. What trains
        may change later (``freeze_for``), on all ranks alike. With one process the module as it is.
        """
        ...

    def whole(self, train_step: nn.Module) -> AbstractContextManager[None]:
        """A context in which every parameter is all there on every rank, so that parts of the model can be called.

        For evaluation, without gradients: within it a rank may do what the others do not. All ranks enter and leave
        together. Parameters must not be changed in it.
        """
        ...


@dataclass(frozen=True)
class DDP:
    """Every rank holds the whole model (DistributedDataParallel); gradients are summed while they are computed."""

    bucket_mb: int = 25
    """Megabytes of gradients that are reduced together."""
    gradient_as_bucket_view: bool = True
    """Gradients are views into what is reduced, which saves a copy of all of them."""

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of its range."""
        if self.bucket_mb < 1:
            raise ArgumentError(f"bucket_mb: {self.bucket_mb} must be at least 1 megabyte")

    def wrap(self, train_step: TrainStep, device: torch.device) -> nn.Module:
        """See ``Parallel``; weights start as those of rank 0."""
        if world_size() == 1:
            return train_step
        return Replicated(train_step, self.bucket_mb, self.gradient_as_bucket_view)

    def whole(self, train_step: nn.Module) -> AbstractContextManager[None]:
        """See ``Parallel``: nothing to do."""
        return nullcontext()


@dataclass(frozen=True)
class FSDP:
    """Every rank holds a share of weights, gradients and optimizer state (FSDP2; ZeRO, arXiv:1910.02054).

    Each repeated block is gathered for its own passes, what is left of the model for all of a step. Parameters stay
    float32 (autocast makes what is bfloat16 of them). Tensors without a dimension, such as a temperature, cannot be
    sharded: every rank has all of them, and ``backward`` sums their gradients.
    """

    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass, and gather them again for its backward pass."""

    def wrap(self, train_step: TrainStep, device: torch.device) -> nn.Module:
        """See ``Parallel``; weights start as those of rank 0."""
        if world_size() == 1:
            return train_step
        for tensor in train_step.state_dict().values():
            dist.broadcast(tensor, 0)
        mesh = init_device_mesh(device.type, (world_size(),))
        shared = {parameter for parameter in train_step.parameters() if parameter.ndim == 0}
        for block in repeated_blocks(train_step.model):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward, ignored_params=shared)
        fully_shard(train_step, mesh=mesh, reshard_after_forward=False, ignored_params=shared)
        for module in _sharded(train_step):
            # A sum, and as such: gloo knows no other reduction.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        # Else the first block that evaluation calls by itself would take itself for the root.
        _fsdp_state(train_step)._lazy_init()
        return train_step

    @contextmanager
    def whole(self, train_step: nn.Module) -> Iterator[None]:
        """See ``Parallel``; takes the memory of all weights while it lasts."""
        modules = _sharded(train_step)
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                reshards = self.reshard_after_forward and module is not train_step
                module.set_reshard_after_forward(reshards, recurse=False)
                module.reshard()
            _forget_passes(train_step)


@contextmanager
def whole_after_forward(train_step: nn.Module, is_last: bool) -> Iterator[None]:
    """Lets a part of the graph of a forward pass be differentiated, as often as one likes, before its backward pass.

    FSDP2 expects one pass of autograd after a forward pass: at the end of any it frees all gathered weights, and what
    a second pass reads of them is gone. Within this context all weights are there (which takes the memory of all of
    them), and nothing is freed, reduced or gathered ahead. So ranks need not differentiate alike; they enter and leave
    together. The backward pass that follows frees each weight as ever, and reduces gradients if it ``is_last`` of its
    step. Any module that is not sharded stays as it is.
    """
    if not isinstance(train_step, FSDPModule):
        yield
        return
    _forget_passes(train_step)  # what is gathered already need not be gathered ahead
    reduce_next(train_step, False)
    for module in _sharded(train_step):
        module.unshard()
    train_step.set_reshard_after_backward(False)
    try:
        yield
    finally:
        train_step.set_reshard_after_backward(True)
        reduce_next(train_step, is_last)


def reduce_next(train_step: FSDPModule, reduces: bool) -> None:
    """Says whether the next backward pass is the last one of a step, which reduces all gradients of the step."""
    train_step.set_requires_gradient_sync(reduces)
    train_step.set_is_last_backward(reduces)


def _fsdp_state(module: nn.Module | FSDPModule) -> Any:
    """FSDP2's own state of a module. torch hangs it on the function that shards, which its annotations do not tell."""
    return fully_shard.state(module)  # type: ignore[attr-defined]


def _forget_passes(train_step: nn.Module) -> None:
    """FSDP2 orders its communication in the next backward pass by all forward passes since the last one.

    Those of evaluation are not the same on all ranks, which would wait for each other for ever; and one without a
    backward pass is not forgotten by itself (torch 2.11 to 2.14).
    """
    for module in _sharded(train_step):
        state = _fsdp_state(module)
        state._comm_ctx.post_forward_order.clear()
        if state._fsdp_param_group is not None:
            state._fsdp_param_group._post_forward_indices.clear()


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def check_parallel(parallel: Parallel, optimizer: OptimizerPart, averages_itself: bool) -> None:
    """Raises UserError for what cannot be computed exactly from shares of the weights.

    ``averages_itself``: whether the teacher is the moving average of what is trained.
    """
    if not isinstance(parallel, FSDP):
        return
    if isinstance(optimizer, Muon):
        raise UserError(
            "parallel: fsdp holds shares of matrices and muon's update needs whole ones; use optim=adamw or "
            "parallel=ddp"
        )
    if averages_itself:
        raise UserError(
            "parallel: fsdp holds shares of the moving average and the teacher needs all of it; use parallel=ddp, or "
            "teacher.run"
        )


def prepare(
    train_step: TrainStep,
    parallel: Parallel,
    device: torch.device,
    activation_checkpointing: bool = False,
    compiled: bool = False,
) -> nn.Module:
    """The module to train in place of ``train_step``, which is on ``device``: once, before the optimizer is made.

    ``activation_checkpointing`` and ``compiled`` are ``train.activation_checkpointing`` and ``train.compile``. Both
    leave the names of parameters as they are. No copy of the model (a teacher that is its average) may be made
    afterwards.
    """
    blocks = repeated_blocks(train_step.model)
    if compiled:
        compile_blocks(blocks)
    if activation_checkpointing:
        checkpoint_blocks(blocks)
    return parallel.wrap(train_step, device)
