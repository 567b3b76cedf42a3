"""``python -m mmlm.bench data``: tar shards by their index, how soon many are ready, and crops of JPEG files."""

import io
import os
import shlex
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmlm.bench.cells import check_at_least, check_out, publish
from mmlm.bench.photos import crops_table, encoded_photos
from mmlm.bench.settings import DataSettings
from mmlm.data.tar_index import index_beside, rows_of, summaries
from mmlm.data.tar_shards import TarShards

MEMBER_MICROSECONDS = 15
"""What a member may cost beside the read itself."""
READY_SECONDS = 2.0
"""How long 10,000 indexed shards may take."""


def measure_data(settings: DataSettings, argv: Sequence[str]) -> int:
    """Measures and prints the table; returns the exit status. The page names ``argv`` as its command."""
    check_at_least(
        1,
        {
            "shards": settings.shards,
            "members": settings.members,
            "photos": settings.photos,
            "rounds": settings.rounds,
        },
    )
    check_out(settings.out)
    with tempfile.TemporaryDirectory() as folder:
        shard = _write_shard(Path(folder) / "one", settings.members)
        beside = _beside_the_read(shard, settings.rounds)
        seconds = _ready(Path(folder) / "many", _write_shard(Path(folder) / "small", 2), settings)
    publish(_document(beside, seconds, settings, argv), settings.out)
    return 0


def _write_shard(folder: Path, members: int) -> Path:
    """A shard of small pictures with captions, and its index."""
    folder.mkdir()
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    shard = folder / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(members):
            for ending, data in (("jpg", buffer.getvalue()), ("txt", b"a picture of noise")):
                info = tarfile.TarInfo(f"{number:05d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    summaries([shard])
    return shard


def _beside_the_read(shard: Path, rounds: int) -> float:
    """Seconds a member that the source takes beyond ``os.pread`` of the same bytes: the median of rounds in turn."""
    source = TarShards(shard.parent)
    (summary,) = summaries([shard])
    rows = rows_of(shard, summary.digest)
    places = list(zip(rows["offset"].to_pylist(), rows["length"].to_pylist(), strict=True))
    order = np.random.default_rng(0).permutation(len(places)).tolist()
    file = os.open(shard, os.O_RDONLY)

    def by_index() -> None:
        for index in order:
            source.encoded(index)

    def the_read_itself() -> None:
        for index in order:
            offset, length = places[index]
            os.pread(file, length, offset)

    try:
        found = [_seconds(by_index) - _seconds(the_read_itself) for _ in range(rounds + 1)][1:]  # the first one opens
    finally:
        os.close(file)
    return statistics.median(found) / len(places)


def _ready(folder: Path, shard: Path, settings: DataSettings) -> float:
    """Seconds until a source of many indexed shards is there: the median of the rounds."""
    folder.mkdir()
    for number in range(settings.shards):
        place = folder / f"{number:05d}.tar"
        os.link(shard, place)  # the index knows its shard by size and time
        os.link(index_beside(shard), index_beside(place))
    return statistics.median(_seconds(lambda: TarShards(folder)) for _ in range(settings.rounds))


def _seconds(work: Callable[[], object]) -> float:
    """Processor seconds, so that other work on the machine hardly counts."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _document(beside: float, seconds: float, settings: DataSettings, argv: Sequence[str]) -> Iterator[str]:
    """The lines of the whole text."""
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'data', *argv])}`"
    yield ""
    yield (
        f"Processor time of one thread, medians of {settings.rounds} rounds. Members: {settings.members:,} of one "
        f"shard in random order, each beside `os.pread` of the same bytes. Ready: {settings.shards:,} shards whose "
        "indexes are there already; what is aimed at is in proportion to 10,000."
    )
    yield ""
    yield "| | measured | aimed at, at most |"
    yield "|---|--:|--:|"
    yield f"| a tar member by the index, beside the read | {1e6 * beside:.1f} µs | {MEMBER_MICROSECONDS} µs |"
    aim = READY_SECONDS * settings.shards / 10_000
    yield f"| {settings.shards:,} indexed shards ready | {seconds:.3f} s | {aim:.3f} s |"
    yield ""
    yield from crops_table(encoded_photos(settings.photos), settings.rounds)
