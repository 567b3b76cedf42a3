"""What all ranks have to agree on in every step: whether it counts, and whether to stop. One small reduction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.distributed import sum_over_ranks
from mmlm.core.flow import Loss
from mmlm.core.stop import asked_by


class AsyncCopy:
    """Values float64[N] on their way to the host; reading them waits for what made them, not for what came after.

    ``tensor.tolist()`` would wait for all that the device has been given since.
    """

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


@dataclass(frozen=True)
class Verdict:
    """What every rank knows of a step once it has been read; equal on all ranks."""

    loss: float
    """Of the whole batch."""
    finite_loss: bool
    finite_gradients: bool
    scale: float
    """The loss scale that the gradients were made at; 1 without one."""
    signal_name: str | None
    """What some rank has been asked to stop with."""

    @property
    def updated(self) -> bool:
        """Whether the update was made."""
        return self.finite_loss and self.finite_gradients

    @property
    def overflowed(self) -> bool:
        """Whether the loss scale was too large for the gradients, and nothing else is known to be wrong."""
        return self.finite_loss and not self.finite_gradients and self.scale > 1


@dataclass(frozen=True)
class PendingResult:
    """The same as tensors on the device, before the host knows any of it."""

    skip: Tensor
    """bool[]: whether the update is left out."""
    overflowed: Tensor
    """bool[]: whether only because of the loss scale."""
    values: AsyncCopy

    def verdict(self) -> Verdict:
        """Waits for this step, and for nothing after it."""
        bad_losses, bad_gradients, loss, *flags, scale = self.values.read()
        return Verdict(loss, bad_losses == 0, bad_gradients == 0, scale, asked_by(flags))


@torch.no_grad()
def agree(loss: Tensor, norm: Tensor, stop_flags: Sequence[float], scale: Tensor | None) -> PendingResult:
    """Reduces over ranks, without waiting for the device.

    Args:
        loss: float[], this rank's share of the batch's.
        norm: float[], of the gradients, unscaled.
        stop_flags: ``StopRequest.flags`` of this rank.
        scale: float32[], the loss scale, the same on all ranks; None: there is none.
    """
    local = [(~loss.isfinite()).double(), (~norm.isfinite()).double(), loss.double()]
    flags = [loss.new_full((), flag, dtype=torch.float64) for flag in stop_flags]  # unlike torch.tensor, waits for none
    total = sum_over_ranks(torch.stack([*local, *flags]))
    one = total.new_ones(()) if scale is None else scale.double()
    bad_loss, bad_gradients = total[0] > 0, total[1] > 0
    overflowed = ~bad_loss & bad_gradients & (one > 1)
    return PendingResult(bad_loss | bad_gradients, overflowed, AsyncCopy(torch.cat([total, one[None]])))


@dataclass(frozen=True)
class MadeStep:
    """An optimizer step whose work has been given to the device, and of which the host knows no number yet."""

    step: int
    """From 0."""
    position: int
    """Of the data after its batch."""
    ids: tuple[str, ...]
    """Of this rank's share of the batch."""
    corrupt: tuple[str, ...]
    """Likewise."""
    loss: Loss
    norm: Tensor
    update_ratios: Mapping[str, float]
    """Of a step that is diagnosed."""
    agreement: PendingResult
