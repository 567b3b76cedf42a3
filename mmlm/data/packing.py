"""Any source written as tar shards or Parquet files: one file at a time, whole or not at all."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.wording import utf8
from mmlm.data.images import decode_image
from mmlm.data.sources import Source, gives_bytes
from mmlm.data.tar_index import make_index

PARQUET = pa.schema(
    {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "caption": pa.list_(pa.string()),
        "language": pa.list_(pa.string()),
        "kind": pa.list_(pa.string()),
        "concept": pa.string(),
        "id": pa.string(),
    }
)
"""The columns: the Hugging Face image convention, the captions with the language and the kind of each, the concept,
and the id."""
ROW_GROUP = 256
"""Rows that a reader has to take at a time."""
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
    (b"P6", "ppm"),
)


@dataclass(frozen=True)
class PackedFile:
    """One file that has been written."""

    name: str
    examples: int
    captions: int
    left_out: tuple[str, ...]
    """``id: reason`` of each example whose image could not be read."""
    bytes: int
    sha256: str

    def is_as_written(self, folder: Path) -> bool:
        """Whether the file is there with the content that it was written with."""
        file = folder / self.name
        try:
            return file.stat().st_size == self.bytes and _sha256(file) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class Row:
    """An example with its image encoded."""

    index: int
    """Its number in the source."""
    id: str
    image: bytes | None
    captions: Sequence[Caption]
    concept: str | None


def pack_file(source: Source, indices: range, texts: Sequence[ExampleTexts] | None, file: Path) -> PackedFile:
    """Writes the examples of ``indices`` into ``file``, a tar shard with its index or a Parquet file, by its ending.

    ``texts`` are those of the examples, or None where they are read together with the images. An encoded image is kept
    as it is where the source has it (``GivesBytes``) and it is in one of the usual formats; any other becomes a PNG,
    which has the same pixels. Examples whose image cannot be read are left out.

    Raises UserError if the disk is full or cannot be written to, and for a text without an image in a tar shard.
    """
    rows = _Rows(source, indices, texts)
    draft = file.with_name(f".{file.name}.part")
    try:
        (_write_parquet if file.suffix == ".parquet" else write_tar)(draft, rows)
        size, digest = draft.stat().st_size, _sha256(draft)
        draft.replace(file)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); free space, then give the command again"
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    if file.suffix == ".tar":
        make_index(file)
    return PackedFile(file.name, rows.examples, rows.captions, tuple(rows.left_out), size, digest)


class _Rows:
    """The rows of some examples, read as they are asked for, and their numbers. They can be gone through once."""

    def __init__(self, source: Source, indices: range, texts: Sequence[ExampleTexts] | None) -> None:
        self._source, self._indices, self._texts = source, indices, texts
        self.examples = self.captions = 0
        self.left_out: list[str] = []

    def __iter__(self) -> Iterator[Row]:
        for place, index in enumerate(self._indices):
            try:
                row = self._row(index, None if self._texts is None else self._texts[place])
            except CorruptImage as error:
                self.left_out.append(str(error))
                continue
            self.examples += 1
            self.captions += len(row.captions)
            yield row

    def _row(self, index: int, texts: ExampleTexts | None) -> Row:
        """Raises CorruptImage."""
        if texts is not None and gives_bytes(self._source):
            data = self._source.encoded(index)
            if data is not None and ending_of(data) is None:
                data = png(decode_image(data, texts.id))
            return Row(index, texts.id, data, texts.captions, texts.concept)
        example = self._source[index]
        data = None if example.image is None else png(example.image)
        return Row(index, example.id, data, example.captions, example.concept)


def png(image: Tensor) -> bytes:
    """A PNG of uint8[3, H, W]: its pixels are the same."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


def ending_of(data: bytes) -> str | None:
    """The ending of a file of that content; None for a format that other programs may not know, or for none."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return next((ending for start, ending in _SIGNATURES if data.startswith(start)), None)


def write_tar(draft: Path, rows: Iterable[Row]) -> None:
    """Writes a tar shard. Raises UserError for a text without an image, and OSError."""
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            if row.image is None:
                raise UserError(f"{row.id}: has no image, and a tar shard has pairs only; use format=parquet")
            texts: dict[str, object] = {
                "id": row.id,
                "captions": [caption.text for caption in row.captions],
                "language": [caption.language for caption in row.captions],
                "concept": row.concept,
            }
            if any(caption.kind is not None for caption in row.captions):
                texts["kind"] = [caption.kind for caption in row.captions]
            _add(tar, f"{row.index:09d}.{ending_of(row.image)}", row.image)
            _add(tar, f"{row.index:09d}.json", utf8(json.dumps(texts, ensure_ascii=False)))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time and no owner, so that equal data make equal files
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_parquet(draft: Path, rows: Iterable[Row]) -> None:
    left = iter(rows)
    with pq.ParquetWriter(draft, PARQUET) as writer:
        while some := list(islice(left, ROW_GROUP)):
            columns: tuple[list[object], ...] = (
                [None if row.image is None else {"bytes": row.image, "path": None} for row in some],
                [[caption.text for caption in row.captions] for row in some],
                [[caption.language for caption in row.captions] for row in some],
                [[caption.kind for caption in row.captions] for row in some],
                [None if row.concept is None else utf8(row.concept).decode() for row in some],
                [row.id for row in some],
            )
            arrays = [pa.array(values, field.type) for values, field in zip(columns, PARQUET, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=PARQUET))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
