"""A module that every rank holds all of (DDP), and the module inside of such wrappers."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``Replicated`` or DDP: names without ``module.`` in front; any other module itself."""
    while isinstance(module, Replicated | DistributedDataParallel):
        module = module.module
    return module


# Gradients summed over ranks

_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}
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
