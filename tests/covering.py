"""Few rows of options in which all options stand together that should and can: a covering, made greedily."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

Option = tuple[str, str]
"""A factor, such as ``bridge``, and one of its options."""
Together = frozenset[Option]
"""A pair of options of two factors, or one option of each of more."""
Row = Mapping[str, str]
"""One option of each factor."""
Factors = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Covering:
    """Rows, and what no row can hold."""

    rows: Sequence[Row]
    impossible: Collection[Together]


def together(factors: Factors, names: Collection[str]) -> list[Together]:
    """Every choice of an option of each of the factors ``names``."""
    return [frozenset(zip(names, chosen, strict=True)) for chosen in itertools.product(*(factors[n] for n in names))]


def held(row: Row, wanted: Collection[Together]) -> list[Together]:
    """What of ``wanted`` a row holds."""
    return [one for one in wanted if one <= row.items()]


def covering(factors: Factors, refused: Callable[[Row], bool], wanted: Sequence[Together]) -> Covering:
    """Rows that are not ``refused`` and hold all of ``wanted`` that such a row can hold.

    ``refused`` is asked of rows that lack some factors too, and says yes only if no option of those would help. Of
    options that add as much to a row the first is taken.
    """
    left, rows, impossible = dict.fromkeys(wanted), [], []
    while left:
        first = next(iter(left))
        row = next(_completed(dict(first), factors, refused, left.keys()), None)
        if row is None:
            impossible.append(first)
            del left[first]
            continue
        rows.append({factor: row[factor] for factor in factors})  # in one order, whatever order its first pair had
        for one in held(row, left.keys()):
            del left[one]
    return Covering(rows, impossible)


def _completed(row: Row, factors: Factors, refused: Callable[[Row], bool], left: Collection[Together]) -> Iterator[Row]:
    """The rows that go on from ``row`` and are not refused, those that hold much of ``left`` first."""
    if refused(row):
        return
    factor = next((factor for factor in factors if factor not in row), None)
    if factor is None:
        yield row
        return

    possible = [one for one in left if all(row.get(name, option) == option for name, option in one)]

    def gain(option: str) -> float:
        """What the option adds to the row, less for what lacks other options yet."""
        return sum(4.0 ** -len(one - row.items()) for one in possible if (factor, option) in one)

    for option in sorted(factors[factor], key=gain, reverse=True):
        yield from _completed({**row, factor: option}, factors, refused, possible)
