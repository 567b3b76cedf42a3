"""What all ranks agree on in every step, by one small reduction: is the update applied, and does the run stop?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.distributed import sum_over_ranks
from mmlm.core.loss import Loss
from mmlm.core.stop import asked_by
from mmlm.training.work import Work


class AsyncCopy:
    """A copy of float64[N] from the device to the CPU that is under way.

    Reading it waits for the work that made the values, and not for work that the device was given later;
    ``tensor.tolist()`` would wait for all of it.
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
        """Waits for the copy, and returns the values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


@dataclass(frozen=True)
class Verdict:
    """The result of a step, once the CPU has read it; equal on all ranks."""

    loss: float
    """Loss of the whole batch."""
    finite_loss: bool
    finite_gradients: bool
    scale: float
    """The loss scale that the gradients were made at; 1 without one."""
    signal_name: str | None
    """The signal by which some rank was asked to stop; None if none was."""
    corrupt: int
    """Examples of the whole batch that could not be read."""

    @property
    def updated(self) -> bool:
        """Whether the optimizer step was applied: loss and gradients were finite on every rank."""
        return self.finite_loss and self.finite_gradients

    @property
    def overflowed(self) -> bool:
        """Whether the loss scale was too large for the gradients, and nothing else is known to be wrong."""
        return self.finite_loss and not self.finite_gradients and self.scale > 1


@dataclass(frozen=True)
class PendingResult:
    """The result of a step while it is still on the device; ``verdict()`` waits for it."""

    skip: Tensor
    """bool[]: whether the update is left out, since a loss or gradient of some rank is not finite."""
    overflowed: Tensor
    """bool[]: whether the loss scale alone is to blame: the loss was finite, the scaled gradients were not."""
    values: AsyncCopy

    def verdict(self) -> Verdict:
        """Waits for this step, and for no step after it."""
        bad_losses, bad_gradients, loss, corrupt, *flags, scale = self.values.read()
        return Verdict(loss, bad_losses == 0, bad_gradients == 0, scale, asked_by(flags), int(corrupt))


@torch.no_grad()
def agree(
    loss: Tensor, norm: Tensor, stop_flags: Sequence[float], scale: Tensor | None, corrupt: int = 0
) -> PendingResult:
    """Reduces the outcome of a step over ranks, without waiting for the device.

    Args:
        loss: float[], this rank's share of the batch's.
        norm: float[], of the gradients, unscaled.
        stop_flags: ``StopRequest.flags`` of this rank.
        scale: float32[], the loss scale, the same on all ranks; None: there is none.
        corrupt: examples of this rank's share that could not be read.
    """
    local = [(~loss.isfinite()).double(), (~norm.isfinite()).double(), loss.double()]
    # Unlike torch.tensor, new_full waits for nothing.
    numbers = [loss.new_full((), number, dtype=torch.float64) for number in (corrupt, *stop_flags)]
    total = sum_over_ranks(torch.stack([*local, *numbers]))
    one = total.new_ones(()) if scale is None else scale.double()
    bad_loss, bad_gradients = total[0] > 0, total[1] > 0
    overflowed = ~bad_loss & bad_gradients & (one > 1)
    return PendingResult(bad_loss | bad_gradients, overflowed, AsyncCopy(torch.cat([total, one[None]])))


@dataclass(frozen=True)
class MadeStep:
    """An optimizer step whose work has been given to the device, and of which the CPU has read no result yet."""

    step: int
    """Optimizer steps done before this one."""
    position: int
    """Examples given to all ranks since the run's start, this step's batch included."""
    ids: tuple[str, ...]
    """Ids of the examples in this rank's share of the batch."""
    corrupt: tuple[str, ...]
    """``id: reason`` of the examples of this rank's share that could not be decoded."""
    corrupt_at: tuple[int, ...]
    """The place of each of those in the order of the run."""
    loss: Loss
    """This rank's share of the batch's loss, without gradient."""
    norm: Tensor
    """float[]: L2 norm of all gradients of all ranks, before clipping."""
    update_ratios: Mapping[str, float]
    """By part, how far the update moved the weights; empty unless the step is diagnosed."""
    result: PendingResult
    work: Work
    """What this rank's share of the batch was made of."""
