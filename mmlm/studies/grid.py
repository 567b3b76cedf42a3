"""The cells of a study, and its runs: each is a command line of ``mmlm.train`` and an ordinary run folder."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean
from mmlm.experiment.config import Config
from mmlm.experiment.run_identity import identity, run_folder
from mmlm.studies.settings import Study

Compose = Callable[[Sequence[str]], Config]
"""The checked config of the words after ``python -m mmlm.train``. Raises UserError."""
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What levels and cells may be called: they become names of files."""
TAKEN = ("seed", "runs", "name", "resume", "launcher", "processes", "preflight", "ranks", "logger")
"""Settings that the study sets itself, or that have no place in a cell."""


@dataclass(frozen=True)
class Cell:
    """One combination of settings."""

    name: str
    levels: Mapping[str, str]
    """The level on each axis; empty where cells are listed."""
    overrides: tuple[str, ...]
    """With those of the base, in front."""
    config: Config
    """What they compose, with the study's first seed."""


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    cell: str
    seed: int
    overrides: tuple[str, ...]
    """The words after ``python -m mmlm.train``."""
    folder: Path
    steps: int
    """Of the whole training."""
    tuned: float | None = None
    """The value that is tried, of a run that tunes; None for a run that is compared."""

    @property
    def label(self) -> str:
        """What tells it from the others, as part of a file's name."""
        tried = "" if self.tuned is None else f".tuning={self.tuned:g}"
        return f"{self.cell}{tried}.seed={self.seed}"

    @property
    def words(self) -> str:
        """The same for people."""
        return f"{self.cell} seed={self.seed}" if self.tuned is None else f"{self.cell} tuning={self.tuned:g}"


def cells_of(study: Study, compose: Compose, runs: str) -> dict[str, Cell]:
    """The cells by name, in the order of the file, the last axis moving first. ``runs`` is the folder of all runs.

    Raises UserError in one line for a name that is none, a setting that a cell may not have, a baseline that is no
    cell, and two cells that are one computation.
    """
    found: dict[str, Cell] = {}
    for name, levels, own in _combinations(study):
        overrides = (*study.base, *own)
        _check_overrides(name, overrides)
        if study.tuning.values and any(_key(token) == study.tuning.setting for token in own):
            raise UserError(
                f"cell {name}: sets {study.tuning.setting} itself, which tuning sets; leave one of them out"
            )
        try:
            config = compose([*overrides, f"seed={study.seeds[0]}", f"runs={runs}"])
        except UserError as error:
            raise UserError(f"cell {name}: {error}") from error
        found[name] = Cell(name, levels, overrides, config)
    if study.baseline not in found:
        raise UserError(f"baseline: '{study.baseline}' is no cell{did_you_mean(study.baseline, list(found))}")
    known: dict[str, str] = {}
    for name, cell in found.items():
        twin = known.setdefault(f"{cell.config.experiment}/{identity(cell.config)}", name)
        if twin != name:
            raise UserError(f"cells {twin} and {name} are the same computation; leave one out, or let them differ")
    for split in study.splits:
        _check_split(split, found)
    return found


def _combinations(study: Study) -> list[tuple[str, dict[str, str], list[str]]]:
    """Name, levels and overrides of each cell."""
    names = [*study.cells, *study.axes, *(level for axis in study.axes.values() for level in axis)]
    bad = next((name for name in names if not re.fullmatch(NAME, str(name))), None)
    if bad is not None:
        raise UserError(f"'{bad}' is no name of a cell, axis or level; use letters, digits, dots, hyphens, underscores")
    if study.cells:
        return [(name, {}, own) for name, own in study.cells.items()]
    empty = next((axis for axis, levels in study.axes.items() if not levels), None)
    if empty is not None:
        raise UserError(f"axes.{empty}: has no level; name at least one")
    combined = itertools.product(*(levels.items() for levels in study.axes.values()))
    return [
        (
            "+".join(level for level, _ in chosen),
            {axis: level for axis, (level, _) in zip(study.axes, chosen, strict=True)},
            [override for _, own in chosen for override in own],
        )
        for chosen in combined
    ]


def _key(token: str) -> str:
    return token.partition("=")[0].lstrip("+~")


def _check_overrides(cell: str, overrides: Sequence[str]) -> None:
    for token in overrides:
        if token.startswith("-") or _key(token).partition(".")[0] in TAKEN:
            raise UserError(f"cell {cell}: {token}: a cell may not set this; the study does, or its command line")


def _check_split(split: str, cells: Mapping[str, Cell]) -> None:
    for name, cell in cells.items():
        known = cell.config.data.validation
        if split not in known:
            raise UserError(
                f"splits: '{split}' is no validation split of cell {name}{did_you_mean(split, list(known))}"
            )


def tuning_runs(study: Study, cells: Mapping[str, Cell], runs: str, compose: Compose) -> list[Run]:
    """The runs that tune, value by value; none if nothing is tuned. Raises UserError."""
    tuning = study.tuning
    return [
        run
        for value in tuning.values
        for cell in cells.values()
        for run in _runs(cell, [f"train.steps={tuning.steps}", _set(study, value)], [tuning.seed], runs, compose, value)
    ]


def compared_runs(
    study: Study,
    cells: Mapping[str, Cell],
    runs: str,
    steps: Mapping[str, int],
    tuned: Mapping[str, float],
    compose: Compose,
) -> list[Run]:
    """The runs that are compared: all cells of the first seed, then of the next, so that a part of them is a table.

    ``steps`` are those that the matching rule gives each cell; cells without any have their own. ``tuned`` are the
    values that were best for each; where cells are tuned, those without one are left out. Raises UserError.
    """
    by_cell = [
        _runs(
            cell,
            [
                *([f"train.steps={steps[name]}"] if name in steps else []),
                *([_set(study, tuned[name])] if name in tuned else []),
            ],
            study.seeds,
            runs,
            compose,
        )
        for name, cell in cells.items()
        if not study.tuning.values or name in tuned
    ]
    return [run for of_seed in zip(*by_cell, strict=True) for run in of_seed]


def _set(study: Study, value: float) -> str:
    return f"{study.tuning.setting}={value:g}"


def _runs(
    cell: Cell, own: Sequence[str], seeds: Sequence[int], runs: str, compose: Compose, tuned: float | None = None
) -> list[Run]:
    """A run of a cell for each seed. They are composed once: the seed is a setting that no other depends on."""
    words = (*cell.overrides, *own, f"runs={runs}")
    try:
        config = compose([*words, f"seed={seeds[0]}"])
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from error
    return [
        Run(
            cell.name,
            seed,
            (*words, f"seed={seed}"),
            run_folder(dataclasses.replace(config, seed=seed)),
            config.train.steps,
            tuned,
        )
        for seed in seeds
    ]
