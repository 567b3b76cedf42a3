"""The index of a tar shard: where the image of each sample lies, and its texts. It is made once and kept in a file.

    00000.tar
    00000.tar.index    a header of HEADER bytes (one line of JSON), then an Arrow file of SCHEMA, a row for each sample

A shard's index is good if the size and the time of change in its header are the shard's; else it is made again. Where
the folder of the shard cannot be written, or is in an object store, the index goes below the user's cache. The header
alone tells how many samples there are, so that thousands of shards are ready in a moment; the rest is read when a shard
is first read. It is not mapped into memory: a mapped file that somebody cuts off kills the process. An index is not
trusted either: places beyond the shard's end, texts that are no UTF-8, or another checksum than that of the header make
it be written anew.
"""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmlm.core.errors import PROGRAM, UserError
from mmlm.core.output import to_stderr
from mmlm.core.wording import utf8
from mmlm.data.stored import Place, Version, version_of, whole_name
from mmlm.data.tar_members import TEXTS, Members, read_members

FORMAT = "mmlm tar index 1"
HEADER = 4096
"""Bytes of the header."""
SCHEMA = pa.schema(
    {
        "key": pa.large_string(),
        "ending": pa.string(),
        "offset": pa.int64(),
        "length": pa.int64(),
        **{text: pa.large_string() for text in TEXTS},
    }
)
"""A sample that has an image and at least one text. ``offset`` and ``length`` are the image's, in bytes."""
ASKED_AT_ONCE = 32
"""Shards of an object store that are asked for at the same time."""
THREADS = 8
"""Shards that are indexed at the same time."""
_TOLD = 8
"""Shards to index from which on it is said, since it takes a while."""


@dataclass(frozen=True)
class Summary:
    """What the header of an index tells of a shard."""

    format: str
    size: int
    """Of the shard, in bytes."""
    modified: int
    """When the shard was changed last; see ``Version.changed`` in ``mmlm/data/stored.py``."""
    digest: int
    """CRC-32 of the rows: two indexes of equal digests have the same samples at the same places."""
    body: int
    """Bytes behind the header."""
    kinds: tuple[int, ...]
    """int[8]: the samples with an image whose texts are those of the bits (see ``Sample.kinds``)."""
    texts_alone: int
    """Samples with a text, but no image."""
    links: int
    unusable: Mapping[str, int]
    """Texts that cannot be used, by reason."""
    endings: tuple[str, ...]
    """The most frequent endings of members."""

    def complete(self, texts: Sequence[str]) -> int:
        """How many samples have an image and at least one of the texts."""
        wanted = sum(1 << TEXTS.index(text) for text in texts)
        return sum(count for kinds, count in enumerate(self.kinds) if kinds & wanted)


def index_beside(shard: Path) -> Path:
    """Where the index of a shard is kept if its folder can be written."""
    return shard.with_name(f"{shard.name}.index")


def _places(shard: Place) -> Iterator[Path]:
    """Where the index of a shard may lie."""
    if isinstance(shard, Path):
        yield index_beside(shard)
    yield _index_in_cache(shard)


def _index_in_cache(shard: Place) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    home = Path(cache) if cache else Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(whole_name(shard))).hexdigest()[:16]
    return home / "mmlm" / "tar" / f"{shard.name}-{name}.index"


def summaries(shards: Sequence[Place]) -> list[Summary]:
    """The summary of each shard; indexes that are missing or no longer right are made, several at a time.

    Raises UserError for a shard that cannot be indexed (see ``read_members``), or an index that cannot be kept.
    """
    # What a disk answers at once, a store answers to several questions at a time.
    with ThreadPoolExecutor(1 if isinstance(shards[0], Path) else ASKED_AT_ONCE) as pool:
        found = list(pool.map(_kept, shards))
    lacking = [number for number, kept in enumerate(found) if kept is None]
    if len(lacking) >= _TOLD:
        to_stderr(f"{PROGRAM}: indexing {len(lacking):,} tar shards in {shards[0].parent}; this is done once")
    pool = ThreadPoolExecutor(max(1, min(THREADS, len(lacking))))
    try:
        for number, summary in zip(lacking, pool.map(make_index, [shards[n] for n in lacking]), strict=True):
            found[number] = summary
    finally:
        pool.shutdown(cancel_futures=True)
    return [summary for summary in found if summary is not None]


def make_index(shard: Place) -> Summary:
    """Reads a shard's headers and writes its index, whole or not at all. Raises UserError."""
    version = _version(shard)
    members = read_members(shard)
    body = _rows_as_bytes(members)
    kinds = [0] * (1 << len(TEXTS))
    for sample in members.samples.values():
        kinds[sample.kinds()] += sample.ending is not None
    summary = Summary(
        format=FORMAT,
        size=version.size,
        modified=version.changed,
        digest=zlib.crc32(body),
        body=len(body),
        kinds=tuple(kinds),
        texts_alone=sum(sample.ending is None for sample in members.samples.values()),
        links=members.links,
        unusable=dict(members.unusable),
        endings=members.common_endings(),
    )
    header = json.dumps(asdict(summary)).encode().ljust(HEADER - 1) + b"\n"
    assert len(header) == HEADER, "endings are cut, so that every header has room"
    failed: OSError | None = None
    for place in _places(shard):
        try:
            _write(place, header, body)
        except OSError as error:
            failed = failed or error
        else:
            return summary
    assert failed is not None
    place = index_beside(shard) if isinstance(shard, Path) else _index_in_cache(shard)
    raise UserError(
        f"{place}: cannot be written ({failed.strerror}), nor can {_index_in_cache(shard).parent}; make "
        "the folder of the shards writable, or set XDG_CACHE_HOME to a folder that is"
    )


def rows_of(shard: Place, digest: int) -> pa.RecordBatch:
    """The rows of ``SCHEMA`` of a shard, out of its index, which is made again if it is not there or not right.

    Raises UserError if the shard has no longer the samples that it had when its summary, with ``digest``, was taken.
    """
    for attempt in (1, 2):
        summary = _kept(shard) if attempt == 1 else make_index(shard)
        if summary is None:
            continue
        if summary.digest != digest:
            break
        rows = _read_rows(shard, summary)
        if rows is not None:
            return rows
    raise UserError(f"{shard}: has changed since its index was read; start again to read it as it is now")


def _rows_as_bytes(members: Members) -> pa.Buffer:
    samples = {key: sample for key, sample in members.samples.items() if sample.ending is not None and sample.kinds()}
    columns = [
        pa.array([utf8(key).decode() for key in samples], pa.large_string()),
        pa.array([sample.ending for sample in samples.values()], pa.string()),
        pa.array([sample.offset for sample in samples.values()], pa.int64()),
        pa.array([sample.length for sample in samples.values()], pa.int64()),
        *(pa.array([sample.texts.get(text) for sample in samples.values()], pa.large_string()) for text in TEXTS),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    return sink.getvalue()


def _write(place: Path, header: bytes, body: pa.Buffer) -> None:
    """Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    # Several ranks, on several machines, may write the same index at once: the last one stays.
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(header)
            file.write(body)
        draft.replace(place)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _kept(shard: Place) -> Summary | None:
    """The summary of a shard's index; None if there is no good one. Raises UserError for a shard that is not there."""
    version = _version(shard)
    for place in _places(shard):
        summary = _read_header(place)
        if summary is not None and (summary.size, summary.modified) == (version.size, version.changed):
            return summary
    return None


def _read_header(place: Path) -> Summary | None:
    try:
        with place.open("rb") as file:
            content = json.loads(file.read(HEADER))
            size = os.fstat(file.fileno()).st_size
        numbers = [content[name] for name in ("size", "modified", "digest", "body", "texts_alone", "links")]
        numbers += [*content["kinds"], *content["unusable"].values()]
        content = content | {"kinds": tuple(content["kinds"]), "endings": tuple(map(str, content["endings"]))}
        summary = Summary(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    whole = all(isinstance(number, int) and number >= 0 for number in numbers) and len(summary.kinds) == 1 << len(TEXTS)
    return summary if whole and summary.format == FORMAT and size == HEADER + summary.body else None


def _read_rows(shard: Place, summary: Summary) -> pa.RecordBatch | None:
    """The rows of an index on disk; None if there is none with that summary whose rows are right."""
    for place in _places(shard):
        if _read_header(place) != summary:
            continue
        try:
            body = place.read_bytes()[HEADER:]
            if zlib.crc32(body) != summary.digest:
                continue
            reader = pa.ipc.open_file(pa.BufferReader(body))
            rows = reader.get_batch(0) if reader.num_record_batches == 1 and reader.schema == SCHEMA else None
            if rows is None:
                continue
            rows.validate(full=True)
        except (OSError, pa.ArrowException):
            continue
        if _lie_inside(rows, summary):
            return rows
    return None


def _lie_inside(rows: pa.RecordBatch, summary: Summary) -> bool:
    needed = rows.select(["key", "ending", "offset", "length"])
    if any(column.null_count for column in needed.columns) or len(rows) != summary.complete(TEXTS):
        return False
    offset, length = (rows[name].to_numpy() for name in ("offset", "length"))  # int64[rows]
    return bool(np.all((offset >= 0) & (length >= 0) & (offset <= summary.size - length)))


def _version(shard: Place) -> Version:
    try:
        return version_of(shard)
    except FileNotFoundError:
        raise UserError(f"{shard}: there is no such shard") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror})") from error
