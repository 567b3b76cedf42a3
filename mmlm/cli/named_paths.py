"""Several paths on the command line, each with a name: ``data=[mine:PATH,other:PATH]``."""

import re
from pathlib import Path

import yaml

from mmlm.core.errors import UserError
from mmlm.data.stored import Place, Url, place_of

_NAMED_URL = re.compile(r"([^:/]+):(?![:/])(.+)", re.DOTALL)
"""``mine:s3://bucket``, and neither ``s3://bucket`` nor ``simplecache::s3://bucket``."""


def named_paths(key: str, given: str) -> dict[str, Place]:
    """The paths and URLs that ``given`` lists, by name: ``PATH``, ``NAME:PATH``, or several of either in brackets.

    A path without a name has that of its file or folder. ``key`` heads messages. Raises UserError: for a list that
    cannot be read, for two of one name, and for a name that is no good one for a column of a table.
    """
    found: dict[str, Place] = {}
    for entry in _entries(key, given):
        name, path = _named(entry)
        if not name or "/" in name or name != name.strip():
            raise UserError(f"{key}: {name!r} is no name; write NAME:PATH with a name without a slash")
        if name in found:
            raise UserError(f"{key}: two are called '{name}'; name them apart, as in {key}=[first:PATH,second:PATH]")
        found[name] = path
    return found


def _entries(key: str, given: str) -> list[str]:
    """One entry, or those of a list in brackets. A path that is there may have brackets in its name."""
    if not given.startswith("[") or Path(given).exists():
        return [given]
    try:
        entries = yaml.safe_load(given)
    except yaml.YAMLError:
        entries = None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{key}: cannot read {given!r}; write {key}=PATH or {key}=[NAME:PATH,NAME:PATH]")
    return entries


def _named(entry: str) -> tuple[str, Place]:
    named = _NAMED_URL.fullmatch(entry)
    place = place_of(entry if named is None else named[2])
    if isinstance(place, Url):
        return (Path(place.text.rstrip("/")).stem if named is None else named[1]), place
    name, colon, rest = entry.partition(":")
    if colon and "/" not in name and not Path(entry).exists():
        return name, Path(rest)
    path = Path(entry)
    whole = path.resolve()  # "." has a name too
    return (whole.stem if path.is_file() else whole.name), path
