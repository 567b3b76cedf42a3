"""Rows of a table that have one id are one example: which they are, and whether they agree."""

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from mmlm.core.errors import UserError
from mmlm.data import parquet_files
from mmlm.data.groups import Groups, grouped
from mmlm.data.table_parts import Columns, TableParts


class SameIds:
    """Goes through the ids of a table, and through the images and concepts of those rows that share one."""

    def __init__(self, parts: TableParts, columns: Columns, place_of: Callable[[int], str]) -> None:
        """``place_of`` says where a row is: ``train.parquet/17``."""
        self._parts, self._columns, self._place_of = parts, columns, place_of
        self._ends = np.cumsum(parts.sizes)  # int64[parts]: the row behind the last of each

    def joined(self, id_column: str) -> Groups | None:
        """The rows of each id; None if each row has its own. Raises UserError."""
        columns = [self._parts.read(part, [id_column])[id_column] for part in range(len(self._ends))]
        texts = pa.chunked_array([chunk for column in columns for chunk in _as_texts(column).chunks])
        codes = np.concatenate([np.zeros(0, np.int64), *_codes(texts)])
        # A row without an id is an example of its own.
        alone = np.flatnonzero(codes < 0)
        codes[alone] = len(codes) + alone
        groups = grouped(codes)
        if len(groups) == len(codes):
            return None
        self._check_images(groups)
        self._check_concepts(groups)
        return groups

    def _check_images(self, groups: Groups) -> None:
        """Raises UserError if two rows of one id have different images; of large tables the first are compared."""
        firsts = np.empty(len(groups.rows), dtype=np.int64)
        firsts[groups.rows] = groups.firsts_of_rows()
        several = np.bincount(firsts, minlength=len(firsts))[firsts] > 1
        known: dict[int, bytes] = {}
        compared = 0
        for part, size in enumerate(self._parts.sizes.tolist()):
            begin = int(self._ends[part]) - size
            rows = begin + np.flatnonzero(several[begin : begin + size])
            if len(rows) == 0:
                continue
            column = self._parts.read(part, [self._columns.image])[self._columns.image]
            for row in rows.tolist():
                cell = column[row - begin].as_py()
                data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                compared += 0 if data is None else len(data)
                if compared > parquet_files.MOST_COMPARED:
                    return
                digest = hashlib.blake2b(repr((data is None, name)).encode(), digest_size=16)
                digest.update(data or b"")
                first = int(firsts[row])
                if known.setdefault(first, digest.digest()) != digest.digest():
                    raise UserError(
                        f"id_column: {self._both(first, row)} and different images; name a column that "
                        "tells images apart"
                    )

    def _check_concepts(self, groups: Groups) -> None:
        """Raises UserError if two rows of one id have different concepts."""
        concept = self._columns.concept
        if concept is None:
            return
        columns = [self._parts.read(part, [concept])[concept] for part in range(len(self._ends))]
        texts = pa.chunked_array([chunk for column in columns for chunk in _as_texts(column).chunks])
        codes = np.concatenate(_codes(texts))
        firsts = groups.firsts_of_rows()
        other = np.flatnonzero(codes[groups.rows] != codes[firsts])
        if len(other):
            both = self._both(int(firsts[other[0]]), int(groups.rows[other[0]]))
            raise UserError(f"concept_column: {both} and different concepts; choose one")

    def _both(self, one: int, other: int) -> str:
        """Two rows of one id, for a message."""
        places = (self._place_of(row).rpartition("/") for row in (one, other))
        where = " and ".join(f"row {row} of {name}" for name, _, row in places)
        part = int(np.searchsorted(self._ends, one, side="right"))
        place = one - int(self._ends[part] - self._parts.sizes[part])
        id = self._parts.read(part, [str(self._columns.id)])[self._columns.id][place].as_py()
        return f"{where} have the id {str(id)!r}"


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of ids or of concepts as they are written."""
    if pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_string())
    return pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.large_string())])


def _codes(texts: pa.ChunkedArray) -> list[np.ndarray]:
    """int64[rows], chunk by chunk: equal texts have equal numbers, in the order of the first of each; -1 for null."""
    encoded = texts.combine_chunks().dictionary_encode()
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    return [chunk.indices.fill_null(-1).to_numpy().astype(np.int64) for chunk in chunks]
