"""Whether a run waits for its data: told once, with what to do."""

import os

WARM_UP = 20
"""Steps that do not count: workers start, and code is compiled."""
STEPS = 100
"""Steps that are looked at together."""
SHARE = 0.2
"""Of their time, what a run may wait for data before it says so."""


class DataWaits:
    """The time that this rank's training waits for batches."""

    def __init__(self) -> None:
        self._steps = 0
        self._waited = self._total = 0.0
        self._told = False

    def add(self, waited: float, total: float) -> str | None:
        """Takes the seconds of one step and those of them that it waited; returns the line to tell, once at most.

        Evaluations and checkpoints are no part of a step.
        """
        self._steps += 1
        if self._steps > WARM_UP:
            self._waited, self._total = self._waited + waited, self._total + total
        if self._told or self._steps <= WARM_UP or (self._steps - WARM_UP) % STEPS:
            return None
        share = self._waited / max(self._total, 1e-9)
        self._waited = self._total = 0.0
        if share <= SHARE:
            return None
        self._told = True
        return (
            f"{100 * share:.0f}% of the last {STEPS} steps went by waiting for data; set data.workers higher (this "
            f"machine has {os.cpu_count() or 1} cores), or give the run smaller copies of the images"
        )
