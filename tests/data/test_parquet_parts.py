"""Parquet files are read by row group: when a row is needed, and the columns that are needed."""

import os
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.data import image_rows
from mmlm.data.images import decode_image
from mmlm.data.order import EpochOrder, Sharded
from mmlm.data.parquet_parts import ParquetParts
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.sources import texts_of
from tests.data.pictures import encoded_picture
from tests.data.tables import IMAGE, pictures_table, write_parquet

ROWS = 4
"""Rows of a group."""


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    """Ten and six rows in groups of four: sizes 4, 4, 2, 4, 2."""
    write_parquet(tmp_path / "0.parquet", pictures_table(range(10)), ROWS)
    write_parquet(tmp_path / "1.parquet", pictures_table(range(10, 16)), ROWS)
    return tmp_path


class Reads(list[tuple[int, tuple[str, ...]]]):
    """The (part, columns) that were read."""

    def of(self, column: str) -> list[int]:
        return [part for part, columns in self if column in columns]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found, read = Reads(), ParquetParts.read

    def recorded(self: ParquetParts, part: int, columns) -> pa.Table:
        found.append((part, tuple(columns)))
        return read(self, part, columns)

    monkeypatch.setattr(ParquetParts, "read", recorded)
    return found


def test_every_row_is_that_of_the_file(two_files):
    source = ParquetTable("*.parquet", concept_column="concept", id_column="id", folder=two_files)
    assert len(source) == 16
    for index in range(16):
        example = source[index]
        assert (example.id, example.concept) == (f"picture/{index}", f"kind {index % 3}")
        assert example.captions == (Caption(f"picture number {index}"),)
        assert source.encoded(index) == encoded_picture(index)
        assert torch.equal(example.image, decode_image(encoded_picture(index), ""))
    assert [texts.id for texts in texts_of(source)] == [f"picture/{index}" for index in range(16)]
    for beyond in (-1, 16):
        with pytest.raises(IndexError, match="is none of the 16 examples"):
            source[beyond]


def test_opening_reads_no_row_and_a_row_costs_its_group_and_no_other_column(two_files, reads):
    source = ParquetTable(two_files / "*.parquet")
    assert reads == []
    assert source[11].captions == (Caption("picture number 11"),)
    assert sorted(reads) == [(3, ("caption",)), (3, ("image",))]
    source[10]
    assert len(reads) == 2, "the group is kept"
    reads.clear()
    list(source.captions())
    assert not reads.of("image")
    assert len(list(source.texts())) == 16
    assert not reads.of("image"), "the file tells that every row has an image"
    assert sorted(reads.of("caption")) == [0, 1, 2, 4], "each once, the third was kept"


@pytest.mark.parametrize("window", [1, 2])
def test_an_order_by_windows_reads_each_group_once_an_epoch(two_files, reads, monkeypatch, window):
    largest = pq.ParquetFile(two_files / "0.parquet").read_row_group(0, columns=["image"]).nbytes
    monkeypatch.setattr(image_rows, "KEPT_IMAGES", 2 * window * largest)
    source = ParquetTable(two_files / "*.parquet")
    assert isinstance(source, Sharded)
    assert list(source.shard_sizes()) == [4, 4, 2, 4, 2]
    for index in EpochOrder(source, 0, window).at(torch.arange(16)).indices.tolist():
        source[index]
    assert sorted(reads.of("image")) == [0, 1, 2, 3, 4]


def test_what_is_kept_has_a_limit(two_files, reads, monkeypatch):
    monkeypatch.setattr(image_rows, "KEPT_IMAGES", 1)
    source = ParquetTable(two_files / "*.parquet")
    for index in (0, 1, 4, 0):
        source[index]
    assert reads.of("image") == [0, 1, 0], "one group at least"


def test_a_worker_is_sent_no_row(two_files, reads):
    few = pickle.dumps(ParquetTable(two_files / "0.parquet"))
    write_parquet(two_files / "many.parquet", pictures_table([0, 1] * 500), 1000)
    source = ParquetTable(two_files / "many.parquet")
    source[999]
    sent = pickle.dumps(source)
    assert len(sent) < len(few) + 100
    reads.clear()
    copy = pickle.loads(sent)
    assert reads == []
    assert copy[999].captions == source[999].captions


def test_rows_of_one_id_in_several_groups_are_one_example(tmp_path):
    numbers = [0, 1, 2, 0, 3, 1, 0, 4]
    table = pictures_table(numbers).set_column(1, "caption", [[f"caption {row}" for row in range(8)]])
    write_parquet(tmp_path / "a.parquet", table, 3)
    source = pickle.loads(pickle.dumps(ParquetTable(tmp_path / "a.parquet", id_column="id", concept_column="concept")))
    assert [texts.id for texts in source.texts()] == [f"picture/{number}" for number in range(5)]
    captions = [[int(caption.text.split()[1]) for caption in source[index].captions] for index in range(5)]
    assert captions == [[0, 3, 6], [1, 5], [2], [4], [7]]
    assert list(source.shard_sizes()) == [3, 1, 1], "an example belongs to the part of its first row"
    orders = EpochOrder(source, 0, 2).at(torch.arange(5)).indices
    assert sorted(orders.tolist()) == list(range(5))


def test_images_of_one_id_that_differ_in_another_group_are_refused(tmp_path):
    table = pictures_table([0, 1, 2, 3]).set_column(3, "id", [["a", "b", "c", "a"]])
    write_parquet(tmp_path / "t.parquet", table, 2)
    with pytest.raises(UserError, match=r"row 0 of t.parquet and row 3 of t.parquet have the id 'a' and different im"):
        ParquetTable(tmp_path / "t.parquet", id_column="id")


@pytest.mark.parametrize("change", ["cut", "replaced", "gone"])
def test_a_file_that_changes_while_it_is_used_makes_its_images_corrupt(two_files, change):
    """It is not open in this process: a file that is stays as it was, if it has been replaced."""
    source = pickle.loads(pickle.dumps(ParquetTable(two_files / "*.parquet")))
    file = two_files / "1.parquet"
    if change == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif change == "gone":
        file.unlink()
    else:
        write_parquet(file, pictures_table(range(20, 26)), 2)
    assert source[0].id == "0.parquet/0"
    with pytest.raises(CorruptImage, match=r"^1\.parquet/2: .*1\.parquet: "):
        source[12]
    with pytest.raises(UserError, match=r"1\.parquet: (has changed since|cannot be read as Parquet)"):
        list(source.texts())


def test_a_file_that_is_cut_off_while_it_is_open_makes_its_images_corrupt(two_files):
    source = ParquetTable(two_files / "1.parquet")
    source[0]
    os.truncate(two_files / "1.parquet", 10)
    with pytest.raises(CorruptImage, match="cannot be read as Parquet"):
        source[5]
    assert source[1].id == "1.parquet/1", "what is kept stays"


def test_names_beside_bytes_are_none_and_those_that_count_are_checked_when_they_are_read(tmp_path):
    """A group whose images have bytes, but for some, is not read at the start; names beside bytes may be anything."""
    cells = [
        {"bytes": encoded_picture(0), "path": "/home/me/0.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": "there.png"},
        None,
    ]
    table = pa.table({"image": pa.array(cells, IMAGE), "caption": list("abcd")})
    write_parquet(tmp_path / "in" / "a.parquet", table, 10)
    (tmp_path / "secret.png").write_bytes(encoded_picture(1))
    (tmp_path / "in" / "there.png").write_bytes(encoded_picture(2))
    source = ParquetTable(tmp_path / "in" / "a.parquet")
    assert source.encoded(0) == encoded_picture(0)
    assert source.encoded(2) == encoded_picture(2)
    assert [texts.has_image for texts in source.texts()] == [True, True, True, False]
    with pytest.raises(UserError, match=r"the image '\.\./secret\.png' lies outside of the folder"):
        source[1]
    assert ParquetTable(tmp_path / "in" / "a.parquet", outside=True).encoded(1) == encoded_picture(1)


def test_files_begin_in_the_folder(two_files, monkeypatch):
    names = ["1.parquet", str(two_files / "0.parquet")]
    assert [texts.captions[0].text for texts in ParquetTable(names, folder=two_files).texts()][:7:6] == [
        "picture number 10",
        "picture number 0",
    ]
    with pytest.raises(UserError, match="there is no such Parquet file; give its whole path, or its folder"):
        ParquetTable("train/none.parquet")


def test_a_window_of_a_table_of_one_group(tmp_path):
    source = ParquetTable(write_parquet(tmp_path / "a.parquet", pictures_table(range(5)), 100))
    counts = Counter(EpochOrder(source, 3, 16).at(torch.arange(10)).indices.tolist())
    assert counts == dict.fromkeys(range(5), 2)
    with pytest.raises(ArgumentError, match="shuffle_window=0"):
        EpochOrder(source, 3, 0)
