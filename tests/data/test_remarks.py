"""Rows of a Parquet file that hold one image twice are counted before training, where nothing joins them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmlm.data import parquet_files
from mmlm.data.image_folder import ImageFolder
from mmlm.data.mixture import Mixture
from mmlm.data.parquet_files import repeated_images
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.remarks import remarks_of
from tests.data.test_sources import png, table_file

RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


def test_images_are_compared_by_their_bytes_and_only_with_those_of_equal_length():
    columns = [pa.chunked_array([[b"aa", b"bb", None], [b"aa", b"ccc"]]), pa.chunked_array([[b"bb", b"bb", b"d"]])]
    assert repeated_images(columns) == 3
    assert repeated_images([pa.chunked_array([[b"aa", b"bb"]])]) == 0
    assert repeated_images([pa.chunked_array([[None, None]], pa.binary())]) == 0


def test_of_a_large_table_the_first_rows_are_compared(monkeypatch):
    monkeypatch.setattr(parquet_files, "MOST_COMPARED", 7)
    assert repeated_images([pa.chunked_array([[b"aa", b"aa", b"aa", b"aa", b"aa"]])]) == 2


def test_rows_without_ids_that_hold_one_image_are_told_of(tmp_path):
    path = table_file(
        tmp_path / "x.parquet",
        [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}, {"bytes": RED, "path": None}],
        ["a", "b", "c"],
        key=["u", "v", "u"],
    )
    (line,) = remarks_of(ParquetTable(path))
    assert line.startswith("1 of 3 rows hold an image that an earlier row has, and count as images of their own; ")
    assert line.endswith("id_column")
    assert "\n" not in line
    assert remarks_of(ParquetTable(path, id_column="key")) == [], "they are one example"
    mixture = Mixture({"table": ParquetTable(path), "other": ParquetTable(path, id_column="key")}, {"table": 3})
    assert remarks_of(mixture) == [
        "table: 9 of 11 examples of an epoch, 3 passes of its 3",
        f"table: {line}",
        "other: 2 of 11 examples of an epoch, 1 passes of its 2",
    ]


def test_a_source_that_does_not_look_has_no_remarks(shapes):
    assert remarks_of(ImageFolder(shapes)) == []


def test_training_and_evaluating_tell_of_them(train_tiny, tmp_path):
    images = [RED, BLUE] * 3
    pq.write_table(pa.table({"image": images, "caption": list("abcdef")}), tmp_path / "x.parquet")
    node = f"{{_target_: mmlm.data.parquet_table.ParquetTable, files: '{tmp_path / 'x.parquet'}'}}"
    outcome = train_tiny(f"+data.validation.table={node}", "train.steps=1")
    assert outcome.status == 0
    assert "data.validation.table: 4 of 6 rows hold an image that an earlier row has" in outcome.out
    assert "data.train: 4 of" not in outcome.out


@pytest.mark.parametrize("column", ["struct", "binary"])
def test_an_image_without_bytes_is_not_compared(tmp_path, column):
    cells = [{"bytes": None, "path": "a.png"}] * 2 if column == "struct" else pa.array([None, None], pa.binary())
    assert remarks_of(ParquetTable(table_file(tmp_path / "x.parquet", cells, ["a", "b"]))) == []
