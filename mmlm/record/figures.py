"""``figures.json`` of a run folder: what the names in its metrics and scores are, as their makers have declared it.

    {"training": {"contrastive/accuracy": {"name": "accuracy", "share": true, ...}, ...},
     "evaluation": {"image_to_text/R@5": {...}, ...}}

Names are those in ``metrics.jsonl`` without ``train/`` or the name of the split. The file only says how to show what
other files hold. So a reader that cannot understand it does without it.
"""

import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmlm.core.figure import Figure, FigureGroup, Place
from mmlm.record.folder import FIGURES
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded


@dataclass(frozen=True)
class RunFigures:
    """The declarations of a run."""

    training: Mapping[str, Figure] = field(default_factory=dict)
    """By the name in ``metrics.jsonl`` without ``train/``."""
    evaluation: Mapping[str, Figure] = field(default_factory=dict)
    """By the name in ``scores.json``."""
    damaged: bool = False
    """True if the file was there and could not be read."""

    def over(self, older: "RunFigures") -> "RunFigures":
        """These, and those of ``older`` that are not declared here."""
        # The order counts (see ``in_order``): a name keeps its place, and new names follow.
        return RunFigures({**older.training, **self.training}, {**older.evaluation, **self.evaluation})


_PARTS = ("training", "evaluation")


def record_figures(folder: Path, figures: RunFigures) -> None:
    """Brings ``figures.json`` of a run folder up to date; what only the file declares is kept."""
    whole = figures.over(read_figures(folder))
    content = {
        part: {name: _values(figure) for name, figure in of_part.items()}
        for part, of_part in zip(_PARTS, (whole.training, whole.evaluation), strict=True)
    }
    write_recorded(folder / FIGURES, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_figures(folder: Path) -> RunFigures:
    """The declarations in a run folder; none if there is no ``figures.json``, or if it is damaged."""
    try:
        content = json.loads(read_recorded(folder / FIGURES))
        training, evaluation = ({n: _figure(values) for n, values in content[part].items()} for part in _PARTS)
        return RunFigures(training, evaluation)
    except FileNotFoundError:
        return RunFigures()
    except (DamagedFileError, OSError, ValueError, TypeError, KeyError, AttributeError):  # or JSON of another shape
        return RunFigures(damaged=True)


def _values(figure: Figure) -> dict[str, object]:
    """A declaration as JSON holds it, without what it leaves to the defaults."""
    plain = asdict(Figure(figure.name))
    return {key: value for key, value in asdict(figure).items() if key == "name" or value != plain[key]}


def _figure(values: Mapping[str, Any]) -> Figure:
    """The declaration that ``_values`` wrote. Keys that a later version may add are left out.

    Raises TypeError or KeyError if it is none.
    """
    hints = typing.get_type_hints(Figure)
    known = {key: value for key, value in values.items() if key in hints and key not in ("group", "shown")}
    for key, value in known.items():
        if not _fits(value, hints[key]):
            raise TypeError(f"{key}: {value!r}")
    if "group" in values:
        known["group"] = FigureGroup(str(values["group"]["name"]), str(values["group"].get("question", "")))
    if "shown" in values:
        known["shown"] = tuple(place for place in typing.get_args(Place) if place in values["shown"])
    return Figure(**known)


def _fits(value: object, hint: Any) -> bool:
    """Whether ``value`` is of a type such as ``bool | None``. An int counts as a float, as it does in JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return isinstance(value, hint)
