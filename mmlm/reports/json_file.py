"""Reads JSON files of a run folder. A wrong value is a ``UserError`` of one line with its file and key."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlm.core.errors import UserError
from mmlm.record.manifest import read_recorded


def read_text(path: Path) -> str | None:
    """The text of a file, or None if there is no such file. Bytes that are not UTF-8 become a replacement mark.

    Raises DamagedFileError for a file that is not as it was written; so does ``read_json``.
    """
    return read_recorded(path).decode(errors="replace") if path.is_file() else None


def read_json(path: Path) -> dict[str, object] | None:
    """The object in a JSON file, or None if there is no such file. ``UserError`` if it holds anything else."""
    if not path.is_file():
        return None
    try:
        content = json.loads(read_recorded(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); evaluate the run again, or remove the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object; evaluate the run again")
    return content


@dataclass(frozen=True)
class JsonNode:
    """A value of a JSON file together with its place in the file, so that a message can name a wrong value."""

    value: Any
    """The plain value; ``get``, ``check`` and ``items`` make sure of its type."""
    where: str
    """File and keys, such as ``scores.json: splits: val``."""

    def get(self, key: str, kind: type, default: object = None) -> "JsonNode":
        """The node under ``key``, or of ``default``; ``UserError`` if it is missing or its value is no ``kind``."""
        if not isinstance(self.value, dict):
            raise UserError(f"{self.where}: should be an object; evaluate the run again")
        if key not in self.value and default is None:
            raise UserError(f"{self.where}: has no '{key}'; evaluate the run again")
        return JsonNode(self.value.get(key, default), f"{self.where}: {key}").check(kind)

    def check(self, kind: type) -> "JsonNode":
        """This node, if its value is a ``kind`` (an int counts as a float); else ``UserError``."""
        wanted = (int, float) if kind is float else kind
        if not isinstance(self.value, wanted):
            raise UserError(f"{self.where}: should be a {kind.__name__}, is {self.value!r:.60}; evaluate the run again")
        return self

    def items(self, kind: type) -> list["JsonNode"]:
        """The nodes of a list's elements; ``UserError`` if one of them is no ``kind``."""
        return [JsonNode(value, f"{self.where}[{i}]").check(kind) for i, value in enumerate(self.check(list).value)]

    def values(self, kind: type) -> tuple[Any, ...]:
        """The plain elements of a list; ``UserError`` if one of them is no ``kind``."""
        return tuple(node.value for node in self.items(kind))
