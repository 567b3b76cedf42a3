"""The row groups of Parquet files, each read when it is needed, and of it the columns that are needed."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmlm.core.errors import UserError
from mmlm.data.parquet_files import one_line_for
from mmlm.data.recent import Recent
from mmlm.data.stored import Place, Url, Version, open_for_arrow, version_of

OPEN_FILES = 32
"""Files that each process keeps open at most."""
_THREADS = 8
"""Files whose ends are read at the same time."""
_UNKNOWN = -1


@dataclass(frozen=True)
class _Footer:
    """What the end of a file tells."""

    version: Version
    schema: pa.Schema
    sizes: list[int]
    """Rows of each group."""
    without_bytes: list[int]
    """Rows of each group whose image has no bytes."""


class ParquetParts:
    """See ``TableParts``. What is held of a file is in proportion to its row groups, not to its rows."""

    mapped = False

    def __init__(self, paths: Sequence[Place], columns: Sequence[str], image_column: str) -> None:
        """Reads the ends of the files. Raises UserError for one that cannot be read, or lacks one of ``columns``."""
        self.paths = tuple(paths)
        pool = ThreadPoolExecutor(min(_THREADS, len(paths)))
        try:
            footers = list(pool.map(lambda path: _footer(path, columns, image_column), paths))
        finally:
            pool.shutdown(cancel_futures=True)
        self._versions = [footer.version for footer in footers]
        # Most files of a table have one schema, which is then kept once.
        self.schemas: list[pa.Schema] = []
        for footer in footers:
            same = self.schemas and self.schemas[-1].equals(footer.schema)
            self.schemas.append(self.schemas[-1] if same else footer.schema)
        counts = [len(footer.sizes) for footer in footers]
        self.files = np.repeat(np.arange(len(footers)), counts)  # int64[parts]
        self._groups = np.concatenate([np.arange(count) for count in counts])  # int64[parts]: its number in its file
        self.sizes = np.array([size for footer in footers for size in footer.sizes], dtype=np.int64)
        self._without_bytes = np.array([rows for footer in footers for rows in footer.without_bytes], dtype=np.int64)
        self._begin()

    def _begin(self) -> None:
        paths, versions = self.paths, self._versions
        self._open: Recent[int, pq.ParquetFile] = Recent(
            lambda number: _opened(paths[number], versions[number]), lambda _: 0, OPEN_FILES, 1
        )
        self._one_at_a_time = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_one_at_a_time")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, part: int, columns: Sequence[str]) -> pa.Table:
        """See ``TableParts``."""
        number = int(self.files[part])
        with one_line_for(self.paths[number]), self._one_at_a_time:  # pyarrow does not say that threads may share one
            return self._open(number).read_row_group(int(self._groups[part]), columns=list(columns), use_threads=False)

    def read_without_bytes(self, part: int, column: str) -> pa.ChunkedArray:
        """See ``TableParts``: only the paths are read, if the column has any."""
        paths = self.schemas[int(self.files[part])].field(column).type.get_field_index("path") >= 0
        return self.read(part, [f"{column}.path" if paths else column])[column]

    def rows_without_bytes(self, part: int, column: str) -> int | None:
        """See ``TableParts``; ``column`` is the image column."""
        count = int(self._without_bytes[part])
        return None if count == _UNKNOWN else count


def _footer(path: Place, columns: Sequence[str], image_column: str) -> _Footer:
    """Raises UserError."""
    with one_line_for(path):
        version = version_of(path)
        file = pq.ParquetFile(open_for_arrow(path))
        schema, metadata = file.schema_arrow, file.metadata
        missing = [column for column in columns if column not in schema.names]
        if missing:
            raise UserError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(schema.names)}")
        leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
        image = schema.field(image_column).type
        of_bytes = image_column if not pa.types.is_struct(image) else f"{image_column}.bytes"
        leaf = leaves.index(of_bytes) if of_bytes in leaves else None
        never = leaf is not None and pa.types.is_struct(image) and pa.types.is_null(image.field("bytes").type)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        nulls = [group.num_rows if never else _nulls(group, leaf) for group in groups]
        return _Footer(version, schema, [group.num_rows for group in groups], nulls)


def _nulls(group: pq.RowGroupMetaData, leaf: int | None) -> int:
    """How many rows of a group have no value in a column, if the file tells."""
    statistics = None if leaf is None else group.column(leaf).statistics
    return statistics.null_count if statistics is not None and statistics.has_null_count else _UNKNOWN


def _opened(path: Place, version: Version) -> pq.ParquetFile:
    """Raises UserError and OSError."""
    if version_of(path) != version:
        raise UserError(f"{path}: has changed since it was opened; start again to read it as it is now")
    # Pieces of one group are asked for together where each question takes long.
    return pq.ParquetFile(open_for_arrow(path), pre_buffer=isinstance(path, Url))
