"""Learning-rate schedules: the learning rate of each step as a share of its peak."""

import math
from dataclasses import dataclass
from typing import Protocol

from mmlm.optim.optimizers import check_number


class Schedule(Protocol):
    """A function from the optimizer step to the share of the peak learning rate."""

    def __call__(self, step: int, num_steps: int) -> float:
        """Factor in [0, 1] for optimizer step ``step`` (from 0) of ``num_steps``."""
        ...


def _check_schedule(warmup_steps: int, final: float) -> None:
    check_number("warmup_steps", warmup_steps, warmup_steps >= 0, "at least 0; 0 starts at the peak")
    check_number("final", final, 0 <= final <= 1, "a share of the peak, between 0 and 1")


def _warm_up(step: int, warmup_steps: int) -> float:
    """Rises linearly to 1. Step 0 already has 1 / ``warmup_steps``: at a rate of 0 it would train nothing."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to ``final`` (SGDR without restarts, arXiv:1608.03983)."""

    warmup_steps: int = 100
    """Optimizer steps from 0 to the peak."""
    final: float = 0.0
    """Share of the peak that the decay would reach one step after the last."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        _check_schedule(self.warmup_steps, self.final)

    def __call__(self, step: int, num_steps: int) -> float:
        """See ``Schedule``."""
        if step < self.warmup_steps:
            return _warm_up(step, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, constant, then a linear decay at the end (WSD, MiniCPM, arXiv:2404.06395)."""

    warmup_steps: int = 100
    """Optimizer steps from 0 to the peak."""
    decay_share: float = 0.2
    """Share of all steps, at the end, that decay."""
    final: float = 0.0
    """Share of the peak that the decay would reach one step after the last."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        _check_schedule(self.warmup_steps, self.final)
        check_number("decay_share", self.decay_share, 0 < self.decay_share <= 1, "above 0 and at most 1")

    def __call__(self, step: int, num_steps: int) -> float:
        """See ``Schedule``."""
        decay_steps = max(1, round(num_steps * self.decay_share))
        left = (num_steps - step) / decay_steps
        return min(_warm_up(step, self.warmup_steps), self.final + (1 - self.final) * min(1.0, left))


@dataclass(frozen=True)
class Constant:
    """Linear warm-up, then the peak to the end."""

    warmup_steps: int = 100
    """Optimizer steps from 0 to the peak."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        _check_schedule(self.warmup_steps, 1.0)

    def __call__(self, step: int, num_steps: int) -> float:
        """See ``Schedule``."""
        return _warm_up(step, self.warmup_steps)
