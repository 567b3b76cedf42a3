"""Finding Parquet files, and checking the columns of tables of images."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import first_line
from mmlm.data.stored import SEPARATOR, Place, is_file, matching_urls, open_for_arrow, place_of, within
from mmlm.data.table_parts import holds_texts, is_image_struct


def expand(files: str | Path | Sequence[str | Path], folder: str | Path | None = None) -> list[Place]:
    """The files of all paths, URLs and patterns, those of a pattern sorted: the order decides the examples' numbers."""
    patterns = [files] if isinstance(files, str | Path) else list(files)
    if not patterns:
        raise ArgumentError("files: [] names no Parquet file; give at least one path or pattern")
    paths: list[Place] = []
    for name in patterns:
        pattern = place_of(name) if folder is None else within(place_of(folder), str(name))
        found = [str(pattern)] if is_file(pattern) else matching(str(pattern))
        if not found:
            cure = "" if folder is not None or os.path.isabs(str(name)) else "; give its whole path, or its folder"
            raise UserError(f"{pattern}: there is no such Parquet file{cure}")
        paths += [place_of(one) for one in found]
    return paths


def matching(pattern: str) -> list[str]:
    """The files of a pattern. Folders that are there as they are written are no patterns: ``photos [v2]/*.parquet``."""
    if SEPARATOR in pattern:
        return matching_urls(pattern)
    path, fixed = Path(pattern), Path()
    rest = list(path.parts)
    while len(rest) > 1 and (fixed / rest[0]).is_dir():
        fixed /= rest.pop(0)
    start = glob.escape(str(fixed)) if fixed != Path() else ""
    return sorted(glob.glob(os.path.join(start, *rest), recursive=True))


def told_apart(paths: Sequence[Place]) -> list[str]:
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


def column_names(path: Place) -> list[str]:
    """The names of a file's columns. UserError if the file cannot be read."""
    with one_line_for(path):
        return pq.read_schema(open_for_arrow(path)).names


@contextmanager
def one_line_for(path: Place) -> Iterator[None]:
    """Context in which a file that cannot be read is a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


MOST_COMPARED = 2**30
"""Bytes of images that are compared at most: a second or two of work."""


def repeated_images(columns: Iterable[pa.ChunkedArray]) -> int:
    """How many rows of all columns have the very bytes of an earlier row's image; rows without bytes do not count.

    Images are compared by a digest, and ``MOST_COMPARED`` bytes of them: of large tables the number is that of their
    first rows, and no more of the columns is asked for.
    """
    seen: set[bytes] = set()
    again = compared = 0
    for column in columns:
        cells = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        # A file in which no row has bytes may say no more of their type than that they are null.
        if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
            continue
        for cell in cells.drop_null():
            data = cell.as_buffer()
            compared += data.size
            if compared > MOST_COMPARED:
                return again
            digest = hashlib.blake2b(data, digest_size=16).digest()
            again += digest in seen
            seen.add(digest)
    return again


def check_types(
    path: Place,
    schema: pa.Schema,
    image_column: str,
    caption_column: str,
    language_column: str | None,
    kind_column: str | None = None,
) -> None:
    """Raises UserError unless the columns hold images and texts."""
    image = schema.field(image_column).type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image) or is_image_struct(image)):
        raise UserError(f"{path}: column {image_column!r} is {image}, but an image is struct<bytes, path> or binary")
    for column, what in ((caption_column, "captions"), (language_column, "languages"), (kind_column, "kinds")):
        if column is not None and not holds_texts(schema.field(column).type):
            kind = schema.field(column).type
            raise UserError(f"{path}: column {column!r} is {kind}, but {what} are strings or lists of strings")


def text_columns(path: Place) -> list[str]:
    """The names of a file's columns of strings, or of lists of strings. UserError if the file cannot be read."""
    with one_line_for(path):
        return [field.name for field in pq.read_schema(open_for_arrow(path)) if holds_texts(field.type)]
