"""The schema of a study's file, ``configs/study/<name>.yaml``: what is compared, over which seeds, what is equal."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from mmlm.core.errors import ArgumentError


class Equal(Enum):
    """What the cells of a study have in common besides their settings."""

    nothing = "nothing"
    examples = "examples"
    flops = "flops"
    time = "time"
    parameters = "parameters"


@dataclass
class Matching:
    """What is held equal. All but ``parameters`` set ``train.steps`` of each cell by what the baseline's come to."""

    equal: Equal = Equal.examples
    """``examples`` seen in training; ``flops`` of training, as counted; ``time`` of training, as measured where it is
    first asked for; ``parameters`` of the model, beside equal examples; or ``nothing``: each cell has its own steps."""
    tolerance: float = 0.02
    """With ``parameters``: the largest share by which a cell may differ from the baseline; more is refused."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ArgumentError(f"tolerance: {self.tolerance} must lie in [0, 1), such as 0.02")


@dataclass
class Tuning:
    """Short runs of every cell before the others: each cell then trains with the value that was best for it.

    What decides is the first of ``metrics`` on the first of ``splits``.
    """

    values: list[float] = field(default_factory=list)
    """The values that are tried, the same for all cells; none: nothing is tuned."""
    setting: str = "optim.lr"
    """What is tuned."""
    steps: int | None = None
    """Optimizer steps of each of these runs."""
    seed: int = 1000
    """Their seed: none of those that are compared."""

    def __post_init__(self) -> None:
        if not self.values:
            if self.steps is not None:
                raise ArgumentError("steps: has no effect without tuning.values; give the values to try, or leave it")
            return
        if len(set(self.values)) < max(2, len(self.values)):
            raise ArgumentError(f"values: {self.values} must be two different values at least, each once")
        if self.steps is None or self.steps < 1:
            raise ArgumentError(f"steps: {self.steps} must be the number of steps of a run that tunes, at least 1")


@dataclass
class Power:
    """What ``plan`` forecasts from, of the first of ``metrics``; shares in points, of a hundred."""

    seed_deviation: float | None = None
    """How much the difference of two cells of one seed varies from seed to seed: a standard deviation, of an earlier
    study. Null: only runs that are done tell."""
    item_error: float = 0.0
    """The standard error of that difference that the choice of items brings."""
    wanted: float = 1.0
    """The difference that is worth finding."""

    def __post_init__(self) -> None:
        for name, value in (("seed_deviation", self.seed_deviation), ("item_error", self.item_error)):
            if value is not None and value < 0:
                raise ArgumentError(f"{name}: {value} must be at least 0")
        if self.wanted <= 0:
            raise ArgumentError(f"wanted: {self.wanted} must be above 0")


@dataclass
class Study:
    """One study."""

    question: str = MISSING
    """What it answers, in one sentence."""
    base: list[str] = field(default_factory=list)
    """Overrides of every cell, as after ``python -m mmlm.train``."""
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Axis, level, overrides: the cells are all combinations of levels, and called by them, as in ``mlp+joint``."""
    cells: dict[str, list[str]] = field(default_factory=dict)
    """Instead of axes: cell, overrides."""
    baseline: str = MISSING
    """The cell that the others are compared with."""
    seeds: list[int] = field(default_factory=list)
    """Every cell is trained once with each of them."""
    splits: list[str] = field(default_factory=list)
    """Validation splits that the table shows."""
    metrics: list[str] = field(default_factory=list)
    """Scores that the table shows, such as image_to_text/R@1."""
    matching: Matching = field(default_factory=Matching)
    tuning: Tuning = field(default_factory=Tuning)
    power: Power = field(default_factory=Power)
    looks: list[int] = field(default_factory=list)
    """Numbers of seeds after which the table is meant to be looked at; null or none: at the end only. A table that is
    made in between says so."""

    def __post_init__(self) -> None:
        if bool(self.axes) == bool(self.cells):
            raise ArgumentError(
                f"{'cells' if self.axes else 'axes'}: give either axes or cells, with overrides by name"
            )
        for key in ("seeds", "splits", "metrics"):
            values = getattr(self, key)
            if not values:
                raise ArgumentError(f"{key}: none is given; list them")
            if len(set(values)) < len(values):
                raise ArgumentError(f"{key}: {values} must name each once")
        if min(self.seeds) < 0:
            raise ArgumentError(f"seeds: {min(self.seeds)} must be at least 0")
        if self.tuning.values and self.tuning.seed in self.seeds:
            raise ArgumentError(f"tuning.seed: {self.tuning.seed} is one of seeds; tune by another one")
        if self.looks and (
            sorted(set(self.looks)) != self.looks or self.looks[0] < 1 or self.looks[-1] != len(self.seeds)
        ):
            raise ArgumentError(
                f"looks: {self.looks} must rise, from 1 at least, and end with the number of seeds, {len(self.seeds)}"
            )
