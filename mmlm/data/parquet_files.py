"""Finding and reading Parquet files, and checking their columns."""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import first_line
from mmlm.data.inside import check_inside


def expand(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of all paths and patterns, those of a pattern sorted: the order decides the examples' numbers."""
    patterns = [files] if isinstance(files, str | Path) else list(files)
    if not patterns:
        raise ArgumentError("files: [] names no Parquet file; give at least one path or pattern")
    paths: list[Path] = []
    for pattern in patterns:
        found = [str(pattern)] if Path(pattern).is_file() else matching(str(pattern))
        if not found:
            raise UserError(f"{pattern}: there is no such Parquet file")
        paths += [Path(name) for name in found]
    return paths


def matching(pattern: str) -> list[str]:
    """The files of a pattern. Folders that are there as they are written are no patterns: ``photos [v2]/*.parquet``."""
    path, fixed = Path(pattern), Path()
    rest = list(path.parts)
    while len(rest) > 1 and (fixed / rest[0]).is_dir():
        fixed /= rest.pop(0)
    start = glob.escape(str(fixed)) if fixed != Path() else ""
    return sorted(glob.glob(os.path.join(start, *rest), recursive=True))


def told_apart(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own, or the path below the folder that holds all files if two have the same name.

    A file that is given twice gets its number in the list as well.
    """
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        whole = [str(path.absolute()) for path in paths]
        names = [os.path.relpath(path, os.path.commonpath(whole)) for path in whole]
    if len(set(names)) < len(names):
        names = [f"{name}, {number}" for number, name in enumerate(names)]
    return names


def column_names(path: Path) -> list[str]:
    """The names of a file's columns. UserError if the file cannot be read."""
    with _one_line(path):
        return pq.read_schema(path).names


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """The columns of a file. UserError if one is missing or the file cannot be read."""
    present = column_names(path)
    missing = [column for column in columns if column not in present]
    if missing:
        raise UserError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(present)}")
    with _one_line(path):
        # partitioning=None: a folder named like ``split=train`` must not become a column.
        return pq.read_table(path, columns=columns, partitioning=None)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Context in which a file that cannot be read is a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def check_paths(path: Path, images: pa.ChunkedArray, outside: bool) -> None:
    """Raises UserError for an image, of those without bytes, that lies outside of the folder of its table."""
    if not pa.types.is_struct(images.type) or images.type.get_field_index("path") < 0:
        return
    without_bytes = pc.is_null(pc.struct_field(images, "bytes"))
    for name in pc.struct_field(images, "path").filter(without_bytes).unique().to_pylist():
        check_inside(name, str(path), outside)


MOST_COMPARED = 2**30
"""Bytes of images that are compared at most: a second or two of work."""


def repeated_images(columns: Sequence[pa.ChunkedArray]) -> int:
    """How many rows of all columns have the very bytes of an earlier row's image; rows without bytes do not count.

    Only images of equal length are compared, by a digest, and ``MOST_COMPARED`` bytes of them: of large tables the
    number is that of their first rows.
    """
    encoded = [pc.struct_field(c, "bytes") if pa.types.is_struct(c.type) else c for c in columns]
    # A file in which no row has bytes may say no more of their type than that they are null.
    encoded = [c for c in encoded if pa.types.is_binary(c.type) or pa.types.is_large_binary(c.type)]
    if not encoded:
        return 0
    lengths = [pc.fill_null(pc.binary_length(c), -1).to_numpy() for c in encoded]
    values, counts = np.unique(np.concatenate(lengths), return_counts=True)
    several = values[(counts > 1) & (values >= 0)]
    seen: set[bytes] = set()
    again = compared = 0
    for column, of_column in zip(encoded, lengths, strict=True):
        for row in np.isin(of_column, several).nonzero()[0].tolist():
            compared += int(of_column[row])
            if compared > MOST_COMPARED:
                return again
            digest = hashlib.blake2b(column[row].as_py(), digest_size=16).digest()
            again += digest in seen
            seen.add(digest)
    return again


def check_types(
    path: Path, table: pa.Table, image_column: str, caption_column: str, language_column: str | None
) -> None:
    """Raises UserError unless the columns hold images and texts."""
    image = table.schema.field(image_column).type
    is_bytes = pa.types.is_binary(image) or pa.types.is_large_binary(image)
    is_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not is_bytes and not is_struct:
        raise UserError(f"{path}: column {image_column!r} is {image}, but an image is struct<bytes, path> or binary")
    for column, what in ((caption_column, "captions"), (language_column, "languages")):
        if column is not None and not _holds_texts(table.schema.field(column).type):
            kind = table.schema.field(column).type
            raise UserError(f"{path}: column {column!r} is {kind}, but {what} are strings or lists of strings")


def text_columns(path: Path) -> list[str]:
    """The names of a file's columns of strings, or of lists of strings. UserError if the file cannot be read."""
    with _one_line(path):
        return [field.name for field in pq.read_schema(path) if _holds_texts(field.type)]


def _holds_texts(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
