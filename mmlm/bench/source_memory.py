"""``python -m mmlm.bench sources``: how long a source of many rows takes to open, and what it costs a data worker.

For each format a data set is made in a temporary folder, whose images are few and have many names. It is opened in one
fresh process, as by a training, and its pickle is sent to another, as to a data worker, which goes through all captions
and reads some examples in the order of training, for several epochs. Memory is resident memory above that of a process
that has imported the same modules and has done nothing.
"""

import gc
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmlm.bench.cells import check_at_least, check_out, publish
from mmlm.bench.process import resident_bytes
from mmlm.bench.settings import SourcesSettings
from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean
from mmlm.data.image_folder import ImageFolder
from mmlm.data.order import EpochOrder, has_shards
from mmlm.data.packing import Row, write_tar
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.sources import Source
from mmlm.data.tar_index import index_beside, make_index
from mmlm.data.tar_shards import OPEN_BYTES, OPEN_SHARDS, TarShards
from mmlm.data.text_table import TextTable

MB = 1e6
MOST_SECONDS, MOST_BYTES = 10.0, 200 * 10**6
"""What is promised of a million rows: seconds to open them, and bytes of each worker."""
IMAGES, FOLDERS = 1000, 1000
"""Images on the disk, and names of their folder: each row has a name of its own up to the product of the two."""
SHARD = 10_000
"""Samples of a tar shard."""
ROW_GROUP = 10_000
"""Rows of a row group."""
WINDOW = 4
"""Shards that are mixed at a time."""


@dataclass(frozen=True)
class Opened:
    """What the process of a training reports."""

    seconds: float
    rows: int


@dataclass(frozen=True)
class Worked:
    """What the process of a worker reports."""

    sent: int
    """Bytes of the pickle."""
    held: list[int]
    """Bytes after each epoch."""


def measure_sources(settings: SourcesSettings, argv: Sequence[str]) -> int:
    """Measures each format and prints the table; returns 1 if one breaks what is promised of a million rows."""
    for name in settings.formats:
        if name not in FORMATS:
            raise UserError(f"formats: '{name}' is none{did_you_mean(name, list(FORMATS))}")
    check_at_least(1, {"rows": settings.rows, "epochs": settings.epochs, "examples": settings.examples})
    check_out(settings.out)
    found = {name: _measured(name, settings) for name in settings.formats}
    publish(_document(found, settings, argv), settings.out)
    kept = [o.seconds <= MOST_SECONDS and max(w.held) <= MOST_BYTES for o, w in found.values()]
    return int(not all(kept) and settings.rows <= 10**6)


def _measured(name: str, settings: SourcesSettings) -> tuple[Opened, Worked]:
    """Makes a data set, and measures it in two fresh processes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        FORMATS[name].make(folder, settings.rows)
        opened = Opened(**_child("opening", name, str(folder)))
        worked = Worked(**_child("working", str(folder), str(settings.epochs), str(settings.examples)))
    return opened, worked


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "mmlm.bench.source_memory", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def opening(name: str, folder: Path) -> Opened:
    """Opens a data set, and leaves its pickle beside it."""
    begun = time.perf_counter()
    source = FORMATS[name].read(folder)
    seconds = time.perf_counter() - begun
    (folder / "source.pickle").write_bytes(pickle.dumps(source))
    return Opened(seconds, len(source))


def working(folder: Path, epochs: int, examples: int) -> Worked:
    """Reads what a worker reads of a source, and of its order, in several epochs."""
    file = folder / "source.pickle"
    sent = file.stat().st_size
    gc.collect()
    before = resident_bytes()
    with file.open("rb") as stream:
        source: Source = pickle.load(stream)
    order = EpochOrder(source, 0, WINDOW if has_shards(source) else None)
    held = []
    for epoch in range(epochs):
        for _ in source.captions():
            pass
        start = epoch * order.examples_per_epoch
        for index in order.at(start + torch.arange(min(examples, len(source)))).indices.tolist():
            source[index]
        gc.collect()
        held.append(resident_bytes() - before)
    return Worked(sent, held)


def _pictures(folder: Path) -> None:
    """``IMAGES`` images in a folder that has ``FOLDERS`` names."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "images" / "0.png")
    for number in range(1, IMAGES):
        os.link(folder / "images" / "0.png", folder / "images" / f"{number}.png")
    for number in range(FOLDERS):
        (folder / f"images {number:03d}").symlink_to(folder / "images")


def _names(rows: int) -> Iterator[str]:
    return (f"images {row // IMAGES % FOLDERS:03d}/{row % IMAGES}.png" for row in range(rows))


def _captions(rows: int) -> Iterator[str]:
    return (f"a caption of fifty letters, with the number {row:9d}" for row in range(rows))


def _make_jsonl(folder: Path, rows: int) -> None:
    _pictures(folder)
    with (folder / "captions.jsonl").open("w") as file:
        for name, caption in zip(_names(rows), _captions(rows), strict=True):
            file.write(f'{{"image": "{name}", "caption": "{caption}"}}\n')


def _make_csv(folder: Path, rows: int) -> None:
    _pictures(folder)
    with (folder / "train.csv").open("w") as file:
        file.write("image,caption\n")
        for name, caption in zip(_names(rows), _captions(rows), strict=True):
            file.write(f'{name},"{caption}"\n')


def _make_parquet(folder: Path, rows: int) -> None:
    _pictures(folder)
    names = pa.array(_names(rows), pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(rows, pa.binary()), names], ["bytes", "path"])
    table = pa.table({"image": images, "caption": pa.array(_captions(rows), pa.string())})
    pq.write_table(table, folder / "train.parquet", row_group_size=ROW_GROUP)


def _make_tar(folder: Path, rows: int) -> None:
    """One shard and its index, under many names: to write and to index a million samples takes minutes."""
    _pictures(folder)
    data = (folder / "images" / "0.png").read_bytes()
    (folder / "train").mkdir()
    size = min(rows, SHARD)
    first = folder / "train" / "00000.tar"
    write_tar(first, (Row(n, str(n), data, [caption], None) for n, caption in enumerate(_texts(size))))
    make_index(first)
    for number in range(1, rows // size):
        other = folder / "train" / f"{number:05d}.tar"
        os.link(first, other)
        shutil.copyfile(index_beside(first), index_beside(other))


def _texts(rows: int) -> Iterator[Caption]:
    return map(Caption, _captions(rows))


@dataclass(frozen=True)
class _Format:
    make: Callable[[Path, int], None]
    read: Callable[[Path], Source]


FORMATS: Mapping[str, _Format] = {
    "jsonl": _Format(_make_jsonl, ImageFolder),
    "csv": _Format(_make_csv, TextTable),
    "parquet": _Format(_make_parquet, lambda folder: ParquetTable(folder / "train.parquet")),
    "tar": _Format(_make_tar, lambda folder: TarShards(folder, "train/*.tar")),
}


def _document(
    found: Mapping[str, tuple[Opened, Worked]], settings: SourcesSettings, argv: Sequence[str]
) -> Iterator[str]:
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'sources', *argv])}`"
    yield ""
    yield (
        f"Promised of a million rows: open in {MOST_SECONDS:g} s, {MOST_BYTES / MB:.0f} MB a worker. An epoch of the "
        f"worker: all captions, and {settings.examples:,} examples in the order of training."
    )
    yield ""
    yield f"| format | rows | seconds to open | MB sent to a worker | MB of the worker, epochs 1 to {settings.epochs} |"
    yield "|---|--:|--:|--:|---|"
    for name, (opened, worked) in found.items():
        held = ", ".join(f"{bytes / MB:.0f}" for bytes in worked.held)
        yield f"| {name} | {opened.rows:,} | {opened.seconds:.1f} | {worked.sent / MB:.1f} | {held} |"
    if "tar" in found:
        yield ""
        yield (
            f"tar: a worker keeps the indexes of the shards that it read last, at most {OPEN_SHARDS} of them and "
            f"{OPEN_BYTES / MB:.0f} MB. Its memory grows over the epochs until these are full, and not further."
        )


def main(argv: Sequence[str]) -> None:
    """Runs in a fresh process: prints an ``Opened`` or a ``Worked`` as JSON."""
    if argv[0] == "opening":
        print(json.dumps(asdict(opening(argv[1], Path(argv[2])))))
    else:
        print(json.dumps(asdict(working(Path(argv[1]), int(argv[2]), int(argv[3])))))


if __name__ == "__main__":
    main(sys.argv[1:])
