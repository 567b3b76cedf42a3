"""What the cells of a study cost, counted or measured, and kept so that neither is done twice."""

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmlm.core.errors import UserError
from mmlm.experiment.run_identity import identity
from mmlm.record.folder import write_whole
from mmlm.studies.grid import Cell


@dataclass(frozen=True)
class Counted:
    """What is known of a cell without training it."""

    parameters: int
    """Of the whole model, frozen ones too."""
    phases: tuple[tuple[int, float], ...]
    """(first optimizer step, FLOPs of a step from then on): a freeze plan lets more train later on."""

    def flops(self, steps: int) -> float:
        """Of the first ``steps`` optimizer steps."""
        ends = [*(begin for begin, _ in self.phases[1:]), steps]
        return sum(
            max(0, min(end, steps) - begin) * of_step for (begin, of_step), end in zip(self.phases, ends, strict=True)
        )

    def steps_for(self, flops: float, most: int = 10**9) -> int:
        """The number of steps, 1 at least, whose FLOPs come closest to ``flops``."""
        above = bisect.bisect_left(range(most), flops, key=self.flops)
        return max(1, min((above - 1, above), key=lambda steps: abs(self.flops(steps) - flops)))


@dataclass(frozen=True)
class Measured:
    """What some steps of a cell, or a whole run, took on this machine."""

    seconds: float
    """Of an optimizer step."""
    beside: float
    """Seconds of a run besides its steps: its start, its last evaluation and its report."""
    memory: float
    """Bytes: the peak of the device, or on a CPU of the process."""
    source: str
    """What was measured, in words."""


@dataclass(frozen=True)
class Costs:
    """Of one cell."""

    counted: Counted | None = None
    measured: Measured | None = None


Count = Callable[[Cell], Counted]
"""Builds the parts of a cell and counts. Raises UserError."""
Measure = Callable[[Cell], Measured]
"""Trains a cell for a few steps. Raises UserError."""


@dataclass
class CostBook:
    """The costs of all cells: asked for when they are needed, and written down."""

    file: Path
    count: Count
    measure: Measure
    tell: Callable[[str], None]
    _known: dict[str, Costs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.is_file():
            try:
                self._known = {key: _costs(value) for key, value in json.loads(self.file.read_bytes()).items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{self.file}: is damaged; remove it, and costs are found anew") from None

    def counted(self, cell: Cell) -> Counted:
        """Parameters and FLOPs of a cell. Raises UserError."""
        known = self._of(cell)
        if known.counted is None:
            self.tell(f"{cell.name}: counting its parameters and FLOPs")
            known = self._write(cell, replace(known, counted=self.count(cell)))
        assert known.counted is not None, "just counted"
        return known.counted

    def measured(self, cell: Cell) -> Measured:
        """Seconds and memory of a cell. Raises UserError."""
        known = self._of(cell)
        if known.measured is None:
            self.tell(f"{cell.name}: measuring some steps")
            known = self._write(cell, replace(known, measured=self.measure(cell)))
        assert known.measured is not None, "just measured"
        return known.measured

    def known_measured(self, cell: Cell) -> Measured | None:
        """What has been measured of a cell, if anything has."""
        return self._of(cell).measured

    def known_counted(self, cell: Cell) -> Counted | None:
        """What has been counted of a cell, if anything has."""
        return self._of(cell).counted

    def _of(self, cell: Cell) -> Costs:
        return self._known.get(identity(cell.config), Costs())

    def _write(self, cell: Cell, costs: Costs) -> Costs:
        self._known[identity(cell.config)] = costs
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps({key: asdict(value) for key, value in self._known.items()}, indent=1) + "\n")
        return costs


def _costs(value: Mapping[str, Any]) -> Costs:
    counted, measured = value["counted"], value["measured"]
    return Costs(
        None if counted is None else Counted(int(counted["parameters"]), _phases(counted["phases"])),
        None if measured is None else Measured(**measured),
    )


def _phases(values: Sequence[Sequence[float]]) -> tuple[tuple[int, float], ...]:
    return tuple((int(begin), float(flops)) for begin, flops in values)
