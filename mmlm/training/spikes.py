"""Loss spikes: a loss far above the recent ones, after which training goes back and on with other data.

PaLM (arXiv:2204.02311, section 5.1) went back to a checkpoint from before the spike and left out the batches around it,
and the spikes did not come again: neither the data nor the weights alone make them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmlm.core.errors import UserError
from mmlm.core.ranges import check_above_zero, check_at_least


@dataclass
class SpikeSettings:
    """When to go back to the checkpoint before a loss spike; off unless ``threshold`` is set."""

    threshold: float | None = None
    """A loss is a spike if it is more than this many standard deviations above the mean of the last ``window`` losses,
    such as 6. Training then goes back to the last checkpoint of ``train.save_every`` from before it, and on with the
    data after its batch. A loss that is meant to jump (an objective that begins, a part that unfreezes) may be taken
    for one. null turns it off."""
    window: int = 128
    """Losses, one an optimizer step, that a loss is compared with; there are no spikes before so many are known."""
    max_rewinds: int = 3
    """How often a run may go back; at one more spike it ends with an error."""

    def __post_init__(self) -> None:
        check_above_zero(self, "threshold")
        check_at_least(self, {"max_rewinds": 0, "window": 2})

    def is_spike(self, loss: float, recent: Sequence[float]) -> bool:
        """Whether ``loss`` is one after the ``recent`` losses, oldest first."""
        if self.threshold is None or len(recent) < self.window:
            return False
        mean = math.fsum(recent) / len(recent)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in recent) / len(recent))
        return loss - mean > self.threshold * deviation

    def remembered(self, loss: float, recent: Sequence[float]) -> list[float]:
        """The losses that the next one is compared with; none if that is turned off."""
        return [] if self.threshold is None else [*recent, loss][-self.window :]

    def goes_back_to(self, step: int, save_every: int | None) -> int | None:
        """The step of the checkpoint that a spike at optimizer step ``step`` (from 0) or soon after it goes back to.

        It is a function of the step, whatever other checkpoints there are, so that a run that was stopped on its way
        goes back to where it would have gone. None: spikes are off.
        """
        if self.threshold is None or save_every is None:
            return None
        return step // save_every * save_every


class LossSpike(UserError):  # noqa: N818 - named after what happened
    """One more loss spike than ``SpikeSettings.max_rewinds`` goes back for."""
