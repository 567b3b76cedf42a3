"""Numbers of settings and of parts that have to lie in a range, checked where they are declared."""

import math
import re
from collections.abc import Mapping, Sequence

from mmlm.core.errors import ArgumentError


def check_above_zero(settings: object, *names: str) -> None:
    """ArgumentError for the first of these fields that is a number not above 0 or not finite, or no number (nan)."""
    for name in names:
        check_positive(name, getattr(settings, name))


def check_at_least(settings: object, least: Mapping[str, int]) -> None:
    """ArgumentError for the first field that is below its number in ``least``; None passes."""
    for name, number in least.items():
        check_counts({name: getattr(settings, name)}, number)


def check_counts(values: Mapping[str, int | None], least: int = 1) -> None:
    """ArgumentError for the first of these arguments, by name, that is below ``least``; None passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ArgumentError(f"{name}: {value} must be at least {least}")


def check_positive(name: str, value: float | None) -> None:
    """ArgumentError unless the argument is above 0 and finite; None passes."""
    if value is not None and not 0 < value < math.inf:
        raise ArgumentError(f"{name}: {value} must be above 0{' and finite' if value == math.inf else ''}")


def check_dropout(dropout: float) -> None:
    """ArgumentError for a share that cannot be dropped."""
    if not 0 <= dropout < 1:
        raise ArgumentError(f"dropout: {dropout} must lie in [0, 1); 0 turns it off")


def check_heads(width: int, num_heads: int) -> None:
    """ArgumentError for a width below 1, and for heads that do not cut it into equal parts."""
    check_counts({"width": width})
    if num_heads < 1 or width % num_heads:
        raise ArgumentError(f"num_heads: {num_heads} does not divide the width {width}; choose one that does")


_LARGEST_RATIO = 1000
"""No feed-forward layer is a thousand times as wide as its input: such a number is a slip."""


def check_ratio(name: str, ratio: float, width: int) -> None:
    """ArgumentError unless ``ratio`` gives a feed-forward layer over ``width`` inputs a hidden unit at least."""
    if not ratio <= _LARGEST_RATIO:
        raise ArgumentError(f"{name}: {ratio} must be above 0 and at most {_LARGEST_RATIO}, such as 4.0")
    if ratio <= 0 or int(width * ratio) < 1:
        raise ArgumentError(f"{name}: {ratio} leaves no hidden units; use one above 0, such as 4.0")


_COUNT = re.compile(r"(size|dim|dims|width|depth|depths|heads|layer|layers|stride|embd|positions|embeddings)s?$")
"""Names under which libraries keep sizes."""
_SHARE = re.compile(r"drop|prob")
"""Names under which they keep shares of what is dropped."""


def check_library_settings(settings: Mapping[str, object], usual: Mapping[str, object]) -> None:
    """ArgumentError for a number that a library would take for one of its ``settings`` and fail with much later.

    ``usual`` are the library's own values, as far as they are known: a number that is 1 or more there is a count, and
    one that is not below 0 there may not be so. Numbers in lists are checked too.
    """
    for key, value in settings.items():
        for number in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_setting(key, number, usual.get(key))


def _check_setting(key: str, number: float, usual: object) -> None:
    told = f"settings.{key}: {number} must be"
    known = usual if isinstance(usual, int | float) and not isinstance(usual, bool) else None
    if not math.isfinite(number):
        raise ArgumentError(f"{told} finite")
    if _SHARE.search(key) and not 0 <= number < 1:
        raise ArgumentError(f"{told} in [0, 1)")
    if key.endswith("ratio") and not number > 0:
        raise ArgumentError(f"{told} above 0")
    is_count = isinstance(number, int) and not _SHARE.search(key)
    if is_count and number < 1 and (_COUNT.search(key) or (isinstance(known, int) and known >= 1)):
        raise ArgumentError(f"{told} at least 1")
    if number < 0 and not (known is not None and known < 0):
        raise ArgumentError(f"{told} at least 0")
