"""``per_item.parquet``: what every score that is a mean is the mean of, item by item, with what was written.

A row is one item of one score: ``split``, ``figure`` (the score's name), ``item`` (the id of an image, or of an image
and one of its texts), ``concept`` (items of one concept are not independent), ``value``, and ``output`` (the caption
that the value is of, if it is of one). Runs are compared by it, pair by pair of items.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from mmlm.evaluation.split import EncodedSplit
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded_bytes

SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "figure": pa.string(),
        "item": pa.string(),
        "concept": pa.int64(),
        "value": pa.float64(),
        "output": pa.string(),
    }
)


@dataclass(frozen=True)
class ItemValues:
    """One score's values, whose mean the score is."""

    figure: str
    """The name of the score, as the evaluator yields it."""
    items: Sequence[str]
    """What tells n items apart, the same for every model."""
    concept: Tensor
    """int64[n]."""
    values: Tensor
    """float[n]."""
    outputs: Sequence[str] | None = None
    """What the model wrote for each."""


@runtime_checkable
class Itemised(Protocol):
    """An evaluator that tells the values of items."""

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields the values of each score that is a mean. All ranks call it, and get the same."""
        ...


def table_of(split: str, prefix: str, values: Sequence[ItemValues]) -> pa.Table:
    """The rows of an evaluator whose names have a ``prefix`` among the scores."""
    parts = [
        pa.table(
            {
                "split": [split] * len(one.items),
                "figure": [prefix + one.figure] * len(one.items),
                "item": list(one.items),
                "concept": one.concept.tolist(),
                "value": one.values.double().tolist(),
                "output": [None] * len(one.items) if one.outputs is None else list(one.outputs),
            },
            schema=SCHEMA,
        )
        for one in values
    ]
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def write_items(file: Path, about: Mapping[str, str], tables: Sequence[pa.Table], splits: Sequence[str]) -> None:
    """Writes the rows, with those of the file before of other scores, if that was ``about`` the same weights.

    ``about`` (step and precision) goes into the metadata of the file. Of ``splits``, nothing earlier is kept.
    """
    new = pa.concat_tables([SCHEMA.empty_table(), *tables])
    replaced = set(zip(new["split"].to_pylist(), new["figure"].to_pylist(), strict=True))
    kept = SCHEMA.empty_table()
    if file.is_file():
        try:
            before = pq.read_table(pa.BufferReader(read_recorded(file)))
            same = {key.decode(): value.decode() for key, value in (before.schema.metadata or {}).items()}
            if all(same.get(key) == value for key, value in about.items()):
                names = zip(before["split"].to_pylist(), before["figure"].to_pylist(), strict=True)
                keep = [name not in replaced and name[0] not in splits for name in names]
                kept = before.filter(pa.array(keep, pa.bool_())).cast(SCHEMA)
        except (DamagedFileError, pa.ArrowException, KeyError):
            pass  # it can be made again from the weights, and the scores beside it say that they are damaged
    metadata: dict[Any, Any] = {key.encode(): value.encode() for key, value in about.items()}
    whole = pa.concat_tables([kept, new]).replace_schema_metadata(metadata)
    content = io.BytesIO()
    pq.write_table(whole, content, compression="zstd")
    write_recorded_bytes(file, content.getvalue())
