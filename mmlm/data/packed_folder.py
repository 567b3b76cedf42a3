"""The folder of packed data: what has been written of it so far, and its manifest once it is whole.

00000.tar, 00001.tar, ...   or .parquet
packing.jsonl               while it is not whole: what is packed, then each file that is done
manifest.json               once it is whole: the same, and the sums
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmlm.core.errors import UserError
from mmlm.data.packing import PackedFile

MANIFEST = "manifest.json"
JOURNAL = "packing.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is packed, and how. Files of another plan are not gone on with."""

    format: str
    shard_size: int
    """Examples of a file."""
    examples: int
    captions: int
    digest: str
    """Of ids, captions and concepts."""

    @property
    def files(self) -> int:
        """The number of files."""
        return -(-self.examples // self.shard_size)

    def name(self, number: int) -> str:
        """The name of a file."""
        return f"{number:05d}.{self.format}"

    def indices(self, number: int) -> range:
        """The examples of a file."""
        return range(number * self.shard_size, min(self.examples, (number + 1) * self.shard_size))


class PackedFolder:
    """A folder that is filled with the files of a plan, by several threads, and gone on with where that was stopped."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Makes the folder. Raises UserError: it cannot be written, or holds other things than files of this plan."""
        self._folder, self._plan = folder, plan
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.done = self._found()
            for draft in folder.glob(".*.part"):
                draft.unlink()
            self._write(folder / JOURNAL, [asdict(plan), *map(asdict, self.done.values())])
        except OSError as error:
            raise UserError(f"out: {folder} cannot be written ({error.strerror}); give another folder") from error

    def _found(self) -> dict[int, PackedFile]:
        """The files that are there as they were written, by number. Raises UserError and OSError."""
        plan, files = self._read()
        if plan is None:
            others = sorted(file.name for file in self._folder.iterdir() if not file.name.startswith("."))
            if others:
                raise UserError(f"out: {self._folder} holds {others[0]}; give a new or an empty folder")
            return {}
        if plan != asdict(self._plan):
            now = asdict(self._plan)
            key = next(key for key in now if plan.get(key) != now[key])
            raise UserError(
                f"out: {self._folder} holds files of another packing ({key} was {plan.get(key)}, and is {now[key]}); "
                "give a new or an empty folder"
            )
        numbers = {self._plan.name(number): number for number in range(self._plan.files)}
        known = [_packed_file(entry) for entry in files]
        there = [file for file in known if file is not None and file.name in numbers]
        return {numbers[file.name]: file for file in there if file.is_as_written(self._folder)}

    def _read(self) -> tuple[Mapping[str, Any] | None, Sequence[object]]:
        """The plan and the entries of the journal, or else of the manifest; None for none."""
        journal, manifest = self._folder / JOURNAL, self._folder / MANIFEST
        if journal.is_file():
            entries = [_parsed(line) for line in journal.read_bytes().splitlines()]
            if entries and isinstance(entries[0], dict):
                return entries[0], entries[1:]
        content = _parsed(manifest.read_bytes()) if manifest.is_file() else None
        if isinstance(content, dict) and isinstance(content.get("plan"), dict):
            files = content.get("files")
            return content["plan"], files if isinstance(files, list) else []
        return None, []

    def add(self, number: int, file: PackedFile) -> None:
        """Writes down that a file is done. Threads may call it at the same time."""
        with self._lock:
            self.done[number] = file
            with (self._folder / JOURNAL).open("a", encoding="utf-8") as journal:
                journal.write(json.dumps(asdict(file)) + "\n")

    def finish(self) -> Path:
        """Writes the manifest, once all files are there; returns it."""
        files = [self.done[number] for number in range(self._plan.files)]
        manifest = {
            "plan": asdict(self._plan),
            "examples": sum(file.examples for file in files),
            "captions": sum(file.captions for file in files),
            "left_out": sum(len(file.left_out) for file in files),
            "bytes": sum(file.bytes for file in files),
            "files": [asdict(file) for file in files],
        }
        path = self._folder / MANIFEST
        self._write(path, [manifest])
        (self._folder / JOURNAL).unlink()
        return path

    def _write(self, file: Path, lines: Sequence[object]) -> None:
        draft = file.with_name(f".{file.name}.part")
        draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        draft.replace(file)


def _parsed(line: bytes) -> object:
    """None for what is no JSON: a line that was cut off as the computer stopped."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _packed_file(entry: object) -> PackedFile | None:
    if not isinstance(entry, dict):
        return None
    try:
        return PackedFile(**{**entry, "left_out": tuple(entry["left_out"])})
    except (TypeError, KeyError):
        return None
