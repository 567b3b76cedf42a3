"""Small tables of pictures, in Parquet files and in folders as the datasets library saves them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.pictures import encoded_picture

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def pictures_table(numbers: Sequence[int]) -> pa.Table:
    """A row for each number: a picture, its caption, and columns that nobody asks for."""
    images = [{"bytes": encoded_picture(number), "path": None} for number in numbers]
    return pa.table(
        {
            "image": pa.array(images, IMAGE),
            "caption": [f"picture number {number}" for number in numbers],
            "concept": [f"kind {number % 3}" for number in numbers],
            "id": [f"picture/{number}" for number in numbers],
            "unused": ["x" * 1000 for _ in numbers],
        }
    )


def write_parquet(file: Path, table: pa.Table, rows: int) -> Path:
    """The table in row groups of so many rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=rows)
    return file


def write_saved(folder: Path, tables: Sequence[pa.Table], rows: int) -> Path:
    """A saved data set with a file for each table, in batches of so many rows."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=rows)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder
