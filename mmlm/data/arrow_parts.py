"""The record batches of Arrow files as the datasets library saves them, mapped into memory."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmlm.core.errors import UserError
from mmlm.core.wording import first_line
from mmlm.data.stored import Version, version_of


class ArrowParts:
    """See ``TableParts``.

    Files are Arrow streams, of which only what is used is read. Their pages belong to the system, and all processes of
    a machine share them. A file that is cut off while it is mapped would kill the process, so each read looks first
    whether the file is what it was.
    """

    mapped = True

    def __init__(self, paths: Sequence[Path], columns: Sequence[str]) -> None:
        """Maps the files. Raises UserError for one that cannot be read, or lacks one of ``columns``."""
        self.paths = tuple(paths)
        self._versions: list[Version] = []
        self.schemas: list[pa.Schema] = []
        sizes: list[np.ndarray] = []
        for path in paths:
            with _one_line_for(path):
                self._versions.append(version_of(path))
                table = _mapped(path)
            missing = [column for column in columns if column not in table.schema.names]
            if missing:
                raise UserError(
                    f"{path}: has no column {missing[0]!r}; its columns are {', '.join(table.schema.names)}"
                )
            same = self.schemas and self.schemas[-1].equals(table.schema)
            self.schemas.append(self.schemas[-1] if same else table.schema)
            sizes.append(np.array([len(batch) for batch in table.to_batches()], dtype=np.int64))
        self.files = np.repeat(np.arange(len(sizes)), [len(some) for some in sizes])
        self.sizes = np.concatenate([np.zeros(0, np.int64), *sizes])
        self._starts = np.concatenate([np.zeros(0, np.int64), *(np.cumsum(some) - some for some in sizes)])
        self._begin()

    def _begin(self) -> None:
        self._tables: dict[int, pa.Table] = {}
        self._checked = np.zeros(len(self.sizes), dtype=bool)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_tables", "_checked", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, part: int, columns: Sequence[str]) -> pa.Table:
        """See ``TableParts``. Nothing is copied."""
        with _one_line_for(self.paths[int(self.files[part])]), self._lock:
            rows = self._rows(part)
            if not self._checked[part]:
                # Places beyond the end of a batch, in a file that somebody has damaged, would kill the process too.
                rows.validate(full=True)
                self._checked[part] = True
            return rows.select(list(columns))

    def _rows(self, part: int) -> pa.Table:
        """The rows of a part, of which nothing is known yet. Raises UserError, OSError and ArrowException."""
        number = int(self.files[part])
        path = self.paths[number]
        if version_of(path) != self._versions[number]:
            raise UserError(f"{path}: has changed since it was opened; start again to read it as it is now")
        if number not in self._tables:
            self._tables[number] = _mapped(path)
        return self._tables[number].slice(int(self._starts[part]), int(self.sizes[part]))

    def read_without_bytes(self, part: int, column: str) -> pa.ChunkedArray:
        """See ``TableParts``: of bytes that nobody looks at, nothing is read."""
        return self.read(part, [column])[column]

    def rows_without_bytes(self, part: int, column: str) -> int | None:
        """See ``TableParts``. The header of a batch tells it."""
        with _one_line_for(self.paths[int(self.files[part])]), self._lock:
            cells = self._rows(part)[column]
            return (pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells).null_count


@contextmanager
def _one_line_for(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as an Arrow stream ({first_line(error)})") from error


def _mapped(path: Path) -> pa.Table:
    """Raises OSError and ArrowException."""
    return pa.ipc.open_stream(pa.memory_map(str(path), "r")).read_all()
