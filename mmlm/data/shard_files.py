"""The files of a data set in shards, by patterns with ranges of numbers: ``train/{00000..00099}.tar``."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed
from mmlm.data.parquet_files import matching
from mmlm.data.stored import Place, is_file, place_of, within

MOST_NAMES = 1_000_000
"""Names that the ranges of one pattern may stand for."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class ShardFiles:
    """The shards that are there."""

    paths: tuple[Place, ...]
    """In the order of the patterns, those of each sorted; none twice."""
    missing: tuple[str, ...]
    """Those that are not there, though a range or the numbers of the others tell of them."""


def find_shards(folder: Place, files: str | Sequence[str]) -> ShardFiles:
    """The files of one or several patterns, from ``folder`` on or with their whole path.

    A pattern may have ``*``, ``?`` and ``[...]``, ranges of numbers ``{00000..00099}``, and lists ``{a,b}``, any of
    them together. Numbers of a range have as many digits as its first. Files of a range that are not there are told
    and not fatal, like gaps in the numbers of the files of a pattern: downloads of many shards seldom have all.

    Raises UserError: for a pattern of which no file is there, and for a name without a pattern that is not there.
    ArgumentError: no pattern, a range that goes down, or one of more than ``MOST_NAMES`` names.
    """
    patterns = [files] if isinstance(files, str) else list(files)
    if not patterns:
        raise ArgumentError("files: [] names no shard; give at least one name or pattern")
    found: dict[Place, None] = {}
    missing: dict[str, None] = {}
    listings: dict[str, set[str]] = {}
    for pattern in patterns:
        whole = within(folder, pattern)
        there = [str(whole)] if is_file(whole) else []
        names = [] if there else _spelt_out(pattern)
        for name in names:
            some = _matching(within(folder, name), listings)
            there += some
            if not some and len(names) > 1:
                missing[name] = None
        if not there:
            raise UserError(f"{whole}: there is no such shard{_instead(whole)}")
        paths = [place_of(name) for name in there]
        found |= dict.fromkeys(paths)
        if len(names) == 1:
            missing |= dict.fromkeys(_gaps(paths))
    return ShardFiles(tuple(found), tuple(missing))


def _matching(one: Place, listings: dict[str, set[str]]) -> list[str]:
    """The files that a name or a pattern stands for. A folder of an object store is listed once, into ``listings``."""
    if isinstance(one, Path):
        return [str(one)] if one.is_file() else matching(str(one))
    if any(sign in one.text for sign in "*?["):
        return matching(one.text)
    parent = str(one.parent)
    if parent not in listings:
        listings[parent] = {place_of(url).name for url in matching(f"{parent}/*")}
    return [one.text] if one.name in listings[parent] else []


def _spelt_out(pattern: str) -> list[str]:
    """The pattern once for each choice out of its braces. Raises ArgumentError."""
    parts = _BRACES.split(pattern)  # text, inside of braces, text, ...
    choices: list[Sequence[str]] = []
    count = 1
    for number, part in enumerate(parts):
        choices.append(_choices(part, pattern) if number % 2 else [part])
        count *= len(choices[-1])
        if count > MOST_NAMES:
            raise ArgumentError(f"files: '{pattern}' stands for more than {MOST_NAMES:,} names; use * instead")
    return ["".join(some) for some in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> Sequence[str]:
    """What a pair of braces stands for."""
    found = _RANGE.fullmatch(inside)
    if found is None:
        # Braces without a choice are characters like any other.
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise ArgumentError(f"files: the range {{{inside}}} of '{pattern}' goes down; write the smaller number first")
    if last - first >= MOST_NAMES:
        raise ArgumentError(f"files: '{pattern}' stands for more than {MOST_NAMES:,} names; use * instead")
    return [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]


def _gaps(paths: Sequence[Place]) -> Iterator[str]:
    """The names between those of files whose names differ in their last number, of equally many digits, only."""
    numbers: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for path in paths:
        found = list(_NUMBER.finditer(path.name))
        if found:
            start, end = found[-1].span()
            numbers[str(path)[: start - len(path.name)], path.name[end:], end - start].append(int(found[-1][0]))
    for (before, after, digits), there in numbers.items():
        span = max(there) - min(there) + 1
        # Numbers that are far apart are no count of shards, but dates and the like.
        if len(there) > 1 and span <= 10 * len(there):
            known = set(there)
            for number in range(min(there), max(there)):
                if number not in known:
                    yield f"{Path(before).name if not before.endswith('/') else ''}{number:0{digits}d}{after}"


def _instead(path: Place) -> str:
    """What lies beside a shard that is not there, for a message."""
    folder = path.parent
    if not isinstance(folder, Path) or not folder.is_dir():
        return ""
    tars = sorted(file.name for file in folder.glob("*.tar"))
    return f"; {folder} has {listed(tars, 5)}" if tars else f"; {folder} has no file that ends in .tar"
