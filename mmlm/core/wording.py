"""Wording of messages to the user: values, type annotations in English, and suggestions for misspelt names."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

LISTS = (list, tuple, set, frozenset, Sequence, Collection, Iterable)
"""Type annotations that a list in a config can satisfy."""
MAPPINGS = (dict, Mapping)
"""Type annotations that a mapping in a config can satisfy."""

_KINDS: Mapping[object, str] = {bool: "true or false", int: "an int", float: "a float", str: "a string", Path: "a path"}


def whole_characters(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair; the halves of a pair that meet become one.

    Texts that were cut in UTF-16, as by JavaScript, hold such halves. No file and no terminal can hold them.
    """
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def utf8(text: str) -> bytes:
    """The text in UTF-8, whatever it holds: the bytes of a file's name that are no UTF-8 are written as ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace")


def closest(name: str, names: Iterable[str]) -> str | None:
    """The member of ``names`` that ``name`` is probably a misspelling of; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, names: Collection[str]) -> str:
    """A suggestion that ends a message: ``; did you mean 'depth'?``, else ``; there are: depth, width``.

    Empty if there are no ``names``.
    """
    match = closest(name, names)
    if match is not None:
        return f"; did you mean '{match}'?"
    return f"; there are: {', '.join(sorted(names))}" if names else ""


def listed(items: Sequence[str], most: int, separator: str = ", ", conjunction: str = " and") -> str:
    """The first ``most`` of ``items``, and how many more there are: ``a, b and 3 more``."""
    first = separator.join(items[:most])
    return f"{first}{conjunction} {len(items) - most} more" if len(items) > most else first


def first_line(error: BaseException) -> str:
    """The first line of the message of a library's exception; the name of its class if the message is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def one_line(error: BaseException) -> str:
    """The whole message of a library's exception without line breaks; the name of its class if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def shown(value: object) -> str:
    """A value as a config writes it, cut to 60 characters."""
    if value is None:
        return "null"
    return cut(str(value).lower() if isinstance(value, bool) else repr(value), 60)


def cut(text: str, most: int) -> str:
    """``text`` of at most ``most`` characters; one that is longer ends in three dots."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    """``text`` on one line that any output can show: characters that cannot be are written as escapes (``\\x0a``).

    A file's name may hold line breaks, and bytes that are no UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe(hint: object) -> str:
    """A type annotation in words, with an article: ``an int``, ``a float or null``. Empty if it allows anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (object, typing.Any):
        return ""
    if hint in (None, types.NoneType):
        return "null"
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(shown(option) for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    kind = hint if origin is None else origin
    # tuple[int, float] has a length and a type for each place; tuple[int, ...] is a list like any other.
    if kind is tuple and arguments and Ellipsis not in arguments:
        return "a list of " + ", ".join(describe(argument) for argument in arguments)
    if kind in LISTS or kind in MAPPINGS:
        items = describe(arguments[-1 if kind in MAPPINGS else 0]) if arguments else ""
        return ("a mapping" if kind in MAPPINGS else "a list") + (f" in which each item is {items}" if items else "")
    return _KINDS.get(kind) or _describe_class(kind)


def _describe_class(kind: object) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return (
        f"{article} {name} (a mapping of its settings)" if dataclasses.is_dataclass(kind) else f"{article} {name} part"
    )
