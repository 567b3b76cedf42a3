"""What a number with a name is: declared once, by who makes it, and read by everything that shows it.

An evaluator, an objective and the training loop yield ``(name, value)``. Beside its values each of them declares what
its names are, as a ``Figure`` for each. The declarations go into the run folder (``record/figures.py``), so that a
report or a comparison, which knows no evaluator and no objective, shows every number for what it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Place = Literal["table", "chart", "compare", "console"]
"""Where a figure is shown: in the report's table of scores, in a chart of the report, in ``python -m mmlm.compare``,
and in the terminal (a training figure while the run trains, a score at its end)."""

TOTAL = "loss"
"""The name of the whole loss in a row of metrics."""
WEIGHTED = "weighted"
"""``<term>/weighted`` in a row of metrics is what a term of the loss adds to the whole, if its weight is not 1."""


@dataclass(frozen=True)
class FigureGroup:
    """Figures that stand together under one heading: rows of the table of scores, or charts of training figures."""

    name: str
    """The heading."""
    question: str = ""
    """What the figures answer, or what a reader has to know of them."""


LOSS = FigureGroup("Loss")
"""The loss and its terms: an objective declares a term by this group."""
OTHER = FigureGroup("Other", "What else was measured.")
"""The figures of no other group, and those that nobody has declared."""


@dataclass(frozen=True)
class Figure:
    """The declaration of one named number. Only ``name`` is needed: without the rest it has a row and a chart."""

    name: str
    """Short, for a row of the table: ``R@5``."""
    meaning: str = ""
    """In plain words: ``it is among the 5 nearest``."""
    group: FigureGroup = OTHER
    title: str = ""
    """Heading where the figure stands without its group, such as a chart; empty is ``name``."""
    share: bool = False
    """True for a share of 1, which is shown in per cent."""
    higher_is_better: bool | None = None
    """None: neither is."""
    chance: float | str | None = None
    """The level of a model that knows nothing. A string is the name of the value that has it, where it depends on the
    split; None: unknown."""
    low: str = ""
    """Name of the value that is the lower end of the figure's interval, if it has one."""
    high: str = ""
    """Name of the upper end."""
    count: str = ""
    """Name of the value that has the number of items that the figure is taken over, if it tells."""
    among: str = ""
    """Name of the value that has the number of candidates that each item is looked for among, if it tells."""
    shown: tuple[Place, ...] = ("table", "chart")
    """Where; a figure that is shown nowhere is still written down."""
    headline: str = ""
    """A clause for the report's first sentence, such as ``{value} of {images} are named right``. ``{images}`` are
    those that were scored (``count``). It may also hold ``{of_images}``: " of 1,500 images", or nothing where the
    clause before is about as many; and ``{of_captions}``: " of 1,400", the number of distinct captions (``among``), or
    nothing where that is unknown."""
    beside: str = ""
    """Of a score: the training figure whose chart shows it too, as a line for each split, where a run has that."""
    family: bool = False
    """True if the values are ``<figure>/<line>``: the lines of one chart, or rows of the table. Then ``low``, ``high``,
    ``count``, ``among`` and a ``chance`` that is a string name families, whose lines belong to those of the figure."""
    log_scale: bool = False
    """True for a figure that spans orders of magnitude."""
    noiseless: bool = False
    """True for a figure that a running mean would only distort. Such a training figure is a setting or close to one,
    and its chart comes before the others of its group."""

    @property
    def heading(self) -> str:
        """The title of its chart."""
        return self.title or self.name

    def under(self, prefix: str) -> "Figure":
        """The declaration where every name of its maker has got a ``prefix``, such as ``captioning/``."""
        names = (prefix + name if name else "" for name in (self.low, self.high, self.count, self.among))
        low, high, count, among = names
        chance = prefix + self.chance if isinstance(self.chance, str) else self.chance
        return replace(self, low=low, high=high, count=count, among=among, chance=chance)

    def line(self, line: str) -> "Figure":
        """The declaration of one line of a family."""
        names = (f"{name}/{line}" if name else "" for name in (self.low, self.high, self.count, self.among))
        low, high, count, among = names
        chance = f"{self.chance}/{line}" if isinstance(self.chance, str) else self.chance
        name = f"{self.name}: {line.replace('_', ' ')}"
        return replace(
            self, name=name, title="", low=low, high=high, count=count, among=among, chance=chance, family=False
        )

    def helpers(self) -> set[str]:
        """The names of the values that belong to this figure and are not shown for themselves."""
        names = (self.low, self.high, self.count, self.among, self.chance)
        return {name for name in names if isinstance(name, str) and name}


def loss_term(meaning: str) -> Figure:
    """The declaration of a term of the loss, whose chart is headed by the name that the config gives its objective."""
    return Figure("loss", meaning, LOSS, higher_is_better=False, shown=("chart", "compare", "console"))


def share_of_training(name: str, meaning: str) -> Figure:
    """The declaration of a training figure that is a share of 1, the higher the better: an accuracy."""
    return Figure(name, meaning, share=True, higher_is_better=True, shown=("chart", "console"))


def setting_of_training(name: str, meaning: str, title: str = "") -> Figure:
    """The declaration of a training figure without noise that is neither good nor bad: a temperature."""
    return Figure(name, meaning, title=title, noiseless=True, shown=("chart", "console"))


def declared(figures: Mapping[str, Figure], name: str) -> Figure:
    """The declaration of a value, which may be a line of a family. One without is shown under its own name."""
    family = family_of(figures, name)
    if family is not None:
        return figures[family].line(name.removeprefix(f"{family}/"))
    return figures.get(name) or Figure(name, title=name.replace("/", " ").replace("_", " "))


def family_of(figures: Mapping[str, Figure], name: str) -> str | None:
    """The figure that the value ``name`` is a line of, if it is one: ``update_ratio`` of ``update_ratio/encoder``."""
    parent = name
    while name not in figures and "/" in parent:
        parent = parent.rpartition("/")[0]
        if parent in figures and figures[parent].family:
            return parent
    return None


def in_order(figures: Mapping[str, Figure], names: Iterable[str]) -> list[str]:
    """The distinct ``names``: first those that are declared, in the order of their declarations, then the others.

    The lines of a family stand in its place, in the order of ``names``.
    """
    place = {name: number for number, name in enumerate(figures)}
    return sorted(dict.fromkeys(names), key=lambda name: place.get(family_of(figures, name) or name, len(place)))


def shown_in(place: Place, figures: Mapping[str, Figure], names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are shown in a place, in order; the helpers of other figures are left out."""
    return [n for n in in_order(figures, without_helpers(figures, names)) if place in declared(figures, n).shown]


def without_helpers(figures: Mapping[str, Figure], names: Iterable[str]) -> list[str]:
    """``names`` without those that belong to another figure: ends of intervals, levels of chance, counts."""
    helpers = {helper for figure in figures.values() for helper in figure.helpers()}
    of_families = tuple(f"{name}/" for figure in figures.values() if figure.family for name in figure.helpers())
    return [name for name in names if name not in helpers and not name.startswith(of_families)]
