"""Two runs on the same items: their scores item by item, and the difference (``statistics/single_runs.py``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmlm.core.errors import UserError
from mmlm.record.folder import PER_ITEM
from mmlm.record.manifest import read_recorded
from mmlm.statistics.single_runs import Difference, item_difference


@dataclass(frozen=True)
class Items:
    """The values of one score, item by item, in the order of ``names``, which is sorted."""

    names: tuple[str, ...]
    concept: np.ndarray
    """int64[n]."""
    values: np.ndarray
    """float64[n]."""


def read_items(folder: Path) -> Mapping[tuple[str, str], Items]:
    """``per_item.parquet`` of a run, by split and name of the score; empty without the file. Raises UserError."""
    file = folder / PER_ITEM
    if not file.is_file():
        return {}
    try:
        table = pq.read_table(pa.BufferReader(read_recorded(file)))
        columns = {name: np.array(table[name].to_pylist()) for name in ("split", "figure", "item", "concept", "value")}
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{file}: cannot be read ({error!s:.80}); evaluate the run again") from error
    found: dict[tuple[str, str], Items] = {}
    for split, figure in dict.fromkeys(zip(columns["split"].tolist(), columns["figure"].tolist(), strict=True)):
        rows = np.flatnonzero((columns["split"] == split) & (columns["figure"] == figure))
        rows = rows[np.argsort(columns["item"][rows], kind="stable")]
        names = tuple(columns["item"][rows].tolist())
        found[split, figure] = Items(names, columns["concept"][rows].astype(np.int64), columns["value"][rows])
    return found


def paired_difference(first: Items, second: Items, seed: int = 0) -> Difference | None:
    """The difference over the items of both; None if they are not of the same items, or of fewer than two concepts."""
    if first.names != second.names:
        return None
    return item_difference(first.values, second.values, first.concept, seed)
