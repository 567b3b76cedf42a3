"""Where the splits of a data set lie, told by names alone: nothing of it is read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TRAIN = re.compile(r"train(ing)?(?![a-z])", re.IGNORECASE)
_VALIDATION = re.compile(r"(val|valid|validation|dev)(?![a-z])", re.IGNORECASE)
"""Beginnings of names of what one trains on, and of what one validates on."""
_CAPTIONS = "captions"
_TABLES = (".csv", ".tsv", ".parquet", ".tar", ".jsonl")


@dataclass(frozen=True)
class OwnSplits:
    """Two files or folders of one data set."""

    train: Path
    validation: Path


def own_splits(path: Path) -> OwnSplits | None:
    """The training and the validation part of a folder; None for a file, and for a folder that is not divided.

    Looked for: folders (``train/`` and ``val/``), tables (``train.csv`` and ``validation.csv``) and COCO's captions, of
    each exactly one of both. A folder with captions of its own is one data set, whatever its folders are called.
    """
    if not path.is_dir() or (path / f"{_CAPTIONS}.jsonl").is_file():
        return None
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    annotations = sorted((path / "annotations").glob(f"{_CAPTIONS}_*.json"))
    tables = [child for child in children if child.suffix.lower() in _TABLES]
    folders = [child for child in children if child.is_dir()]
    for group in (annotations, tables, folders):
        train, validation = (_only(group, pattern) for pattern in (_TRAIN, _VALIDATION))
        if train is not None and validation is not None:
            return OwnSplits(train, validation)
    return None


def _only(paths: Iterable[Path], pattern: re.Pattern[str]) -> Path | None:
    """The only one whose name begins with the pattern."""
    found = [path for path in paths if pattern.match(path.stem.removeprefix(f"{_CAPTIONS}_"))]
    return found[0] if len(found) == 1 else None
