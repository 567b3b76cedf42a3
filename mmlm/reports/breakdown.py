"""Counts over the items of a split: scores by artist, language or length, and what is taken for what."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmlm.core.intervals import share_interval
from mmlm.reports.items import ImageItem, SplitItems, TextItem

Item = ImageItem | TextItem

CUTOFF = 5
"""The k of the R@k that is broken down."""
MOST_VALUES = 12
"""Values of one attribute that have a row of their own; the rarer ones share a row."""
OTHERS = "all others"
LENGTHS = ((1, "1 word"), (2, "2 words"), (3, "3 words"), (4, "4 words"), (6, "5 or 6 words"), (9, "7 to 9 words"))
"""Most words of each class of lengths, and its name."""
LONGER = "10 words and more"
MOST_MISTAKES = 10
"""Rows of a table of mistakes."""
_EXAMPLES = 3


@dataclass(frozen=True)
class Share:
    """A share of some items that are right, with its interval."""

    value: float
    low: float
    high: float
    count: int
    """Items that have been scored."""


@dataclass(frozen=True)
class Row:
    """One value of an attribute, and the scores of the items that have it."""

    value: str
    count: int
    found: Share | None
    """R@``CUTOFF``; None where nothing was ranked."""
    exact: Share | None
    """Captions that are exactly right; None where none was scored."""


@dataclass(frozen=True)
class Table:
    """The rows of one attribute."""

    attribute: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Mistake:
    """One wrong answer."""

    answer: str
    count: int
    instead_of: tuple[str, ...]
    """What the images show for which it was given, most frequent first; a few of them."""
    several: bool
    """True if there are more of those."""


def image_tables(items: SplitItems) -> list[Table]:
    """Scores of the images by each attribute, then by the length of their shortest true caption."""
    names = dict.fromkeys(name for image in items.images for name in image.attributes)
    tables = [_table(name, [(image.attributes.get(name), image) for image in items.images]) for name in names]
    lengths = [(_length(image.words), image) for image in items.images]
    length = _table("length of the caption", lengths, in_order=True)
    return [table for table in (*tables, length) if len(table.rows) > 1]


def text_tables(items: SplitItems) -> list[Table]:
    """Retrieval by text, by the language of the text and by its length."""
    language = _table("language", [(text.language, text) for text in items.texts])
    length = _table("length", [(_length(text.words), text) for text in items.texts], in_order=True)
    return [table for table in (language, length) if len(table.rows) > 1]


def nearest_mistakes(items: SplitItems) -> list[Mistake]:
    """What images are taken for: the subjects of the nearest captions that are wrong, most frequent first."""
    return _mistakes((image.shown, image.wrong) for image in items.images if image.rank is not None)


def said_mistakes(items: SplitItems) -> list[Mistake]:
    """What is said of images wrongly: captions that are not exactly a true one, most frequent first."""
    return _mistakes((image.shown, image.said or "(nothing)") for image in items.images if image.exact is False)


def _table(attribute: str, items: Sequence[tuple[str | None, Item]], in_order: bool = False) -> Table:
    """A row for each value; ``items`` come with theirs. ``in_order``: lengths stay in order, not by their number."""
    groups: dict[str, list[Item]] = {}
    for value, item in items:
        if value is not None:
            groups.setdefault(value, []).append(item)
    if in_order:
        names = [name for name in (*(name for _, name in LENGTHS), LONGER) if name in groups]
        return Table(attribute, tuple(_row(name, groups[name]) for name in names))
    ordered = sorted(groups, key=lambda name: (-len(groups[name]), name))
    rows = [_row(name, groups[name]) for name in ordered[:MOST_VALUES]]
    rest = [item for name in ordered[MOST_VALUES:] for item in groups[name]]
    return Table(attribute, (*rows, *([_row(OTHERS, rest)] if rest else [])))


def _row(value: str, items: Sequence[Item]) -> Row:
    """The scores of some items. Images that show the same are no independent ones."""
    found = [
        (float(item.rank <= CUTOFF), _subject(item, row)) for row, item in enumerate(items) if item.rank is not None
    ]
    exact = [
        (float(item.exact), _subject(item, row))
        for row, item in enumerate(items)
        if isinstance(item, ImageItem) and item.exact is not None
    ]
    return Row(value, len(items), _share(found), _share(exact))


def _subject(item: Item, row: int) -> object:
    return item.shown if isinstance(item, ImageItem) and item.shown is not None else row


def _share(right: Sequence[tuple[float, object]]) -> Share | None:
    if not right:
        return None
    values, clusters = [value for value, _ in right], [cluster for _, cluster in right]
    low, high = share_interval(values, clusters)
    return Share(sum(values) / len(values), low, high, len(values))


def _length(words: int | None) -> str | None:
    if words is None:
        return None
    return next((name for most, name in LENGTHS if words <= most), LONGER)


def _mistakes(pairs: Iterable[tuple[str | None, str | None]]) -> list[Mistake]:
    """(what is shown, what was answered instead) -> the most frequent answers with what they stood for."""
    found: dict[str, Counter[str]] = {}
    for shown, answer in pairs:
        if shown is not None and answer is not None and answer != shown:
            found.setdefault(answer, Counter())[shown] += 1
    ordered = sorted(found, key=lambda answer: (-found[answer].total(), answer))
    return [_mistake(answer, found[answer]) for answer in ordered[:MOST_MISTAKES]]


def _mistake(answer: str, shown: Mapping[str, int]) -> Mistake:
    ordered = sorted(shown, key=lambda name: (-shown[name], name))
    named = tuple(f"{name} ({shown[name]} times)" if shown[name] > 1 else name for name in ordered[:_EXAMPLES])
    return Mistake(answer, sum(shown.values()), named, len(ordered) > _EXAMPLES)
