"""Weights of objectives that change over the steps."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mmlm.core.errors import ArgumentError


@runtime_checkable
class WeightSchedule(Protocol):
    """A weight as a function of the optimizer step."""

    def __call__(self, step: int) -> float:
        """The weight, at least 0, at optimizer step ``step``, counted from 0."""
        ...


Weight = float | WeightSchedule


@dataclass(frozen=True)
class Ramp:
    """A weight of ``start`` until optimizer step ``first``, linear from there to ``end`` at step ``last``, then
    ``end``.

    With ``first`` equal to ``last`` the weight jumps to ``end`` at that step: ``start=0`` begins an objective there.
    """

    first: int
    last: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        """Raises UserError for steps out of order and for weights that are negative, infinite or both 0."""
        if not 0 <= self.first <= self.last:
            raise ArgumentError(f"first: {self.first} and last={self.last} must be steps in order")
        for key, value in {"start": self.start, "end": self.end}.items():
            if not 0 <= value < math.inf:
                raise ArgumentError(f"{key}: {value} is no weight; it must be at least 0 and finite")
        if self.start == self.end == 0:
            raise ArgumentError("end: a ramp from 0 to 0 trains nothing; use a weight of 0")

    def __call__(self, step: int) -> float:
        """See ``WeightSchedule``."""
        if step >= self.last:
            return self.end
        if step <= self.first:
            return self.start
        return self.start + (self.end - self.start) * (step - self.first) / (self.last - self.first)
