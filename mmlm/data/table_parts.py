"""Tables that are read a part at a time: the row groups of Parquet files, or the batches of Arrow files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from mmlm.core.errors import ArgumentError
from mmlm.data.stored import Place


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by their names."""

    image: str
    captions: Sequence[str]
    concept: str | None
    id: str | None
    language: str | None
    kind: str | None = None
    """That of the kinds of captions, which count before the names of ``captions``."""

    @property
    def kinds(self) -> list[str | None]:
        """The kind of the captions in each of ``captions``: its name if there are several, and none otherwise."""
        return [None] if len(self.captions) == 1 else list(self.captions)

    @property
    def texts(self) -> list[str]:
        """All but that of images."""
        named = (*self.captions, self.concept, self.id, self.language, self.kind)
        return list(dict.fromkeys(column for column in named if column is not None))

    @property
    def all(self) -> list[str]:
        """All of them, none twice."""
        return list(dict.fromkeys([self.image, *self.texts]))


def caption_columns(given: str | Sequence[str]) -> list[str]:
    """The columns of captions that the argument ``caption_column`` names. Raises ArgumentError."""
    columns = [given] if isinstance(given, str) else list(given)
    if not columns or len(set(columns)) < len(columns):
        raise ArgumentError(f"caption_column: {columns} must name at least one column, and none of them twice")
    return columns


class TableParts(Protocol):
    """The parts of the files of one table. It is sent to data workers, and holds no row."""

    @property
    def mapped(self) -> bool:
        """Whether to read a part costs next to nothing, and what is read must not be kept."""
        ...

    @property
    def paths(self) -> Sequence[Place]:
        """The files."""
        ...

    @property
    def files(self) -> np.ndarray:
        """int64[parts]: the number of the file that each part lies in."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """int64[parts]: rows of each part."""
        ...

    @property
    def schemas(self) -> Sequence[pa.Schema]:
        """That of each file."""
        ...

    def read(self, part: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a part. Raises UserError if its file cannot be read, or is another than it was."""
        ...

    def read_without_bytes(self, part: int, column: str) -> pa.ChunkedArray:
        """A column of struct<bytes, path>, of which ``bytes`` may be left out. Raises UserError."""
        ...

    def rows_without_bytes(self, part: int, column: str) -> int | None:
        """How many rows of an image column have no bytes; None where only reading all of them would tell."""
        ...


def holds_texts(kind: pa.DataType) -> bool:
    """Whether a column is of strings, or of lists of strings."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_image_struct(kind: pa.DataType) -> bool:
    """Whether a column of images is one of struct<bytes, path>."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def has_path(kind: pa.DataType) -> bool:
    """Whether a column of images may name files."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)
