"""Folders that the datasets library saves. A folder by the library itself was compared by hand; see the docstring."""

import json
import os
import pickle

import pyarrow as pa
import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.data.arrow_parts import ArrowParts
from mmlm.data.order import EpochOrder
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.saved_dataset import SavedDataset
from tests.data.pictures import encoded_picture
from tests.data.tables import IMAGE, pictures_table, write_parquet, write_saved


@pytest.fixture
def saved(tmp_path):
    """Ten and six rows in batches of four."""
    return write_saved(tmp_path / "saved", [pictures_table(range(10)), pictures_table(range(10, 16))], 4)


def test_it_is_the_table_that_parquet_files_of_it_are(saved, tmp_path):
    names = ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    for name, numbers in zip(names, (range(10), range(10, 16)), strict=True):
        write_parquet(tmp_path / "parquet" / name, pictures_table(numbers), 4)
    settings = {"concept_column": "concept", "language": "en"}
    one = pickle.loads(pickle.dumps(SavedDataset(saved, **settings)))
    other = ParquetTable([tmp_path / "parquet" / name for name in names], **settings)
    assert list(one.texts()) == list(other.texts())
    assert list(one.captions()) == list(other.captions())
    assert one.shard_sizes() == other.shard_sizes() == [4, 4, 2, 4, 2]
    assert [one.encoded(index) for index in range(16)] == [encoded_picture(index) for index in range(16)]
    assert all(torch.equal(one[index].image, other[index].image) for index in range(16))
    assert sorted(EpochOrder(one, 0, 2).at(torch.arange(16)).indices.tolist()) == list(range(16))


def test_rows_of_one_id_and_images_without_bytes(tmp_path):
    cells = [{"bytes": None, "path": "a.png"}, None, {"bytes": None, "path": "a.png"}]
    table = pa.table({"image": pa.array(cells, IMAGE), "caption": ["x", None, "y"], "key": [7, 8, 7]})
    folder = write_saved(tmp_path / "saved", [table], 2)
    (folder / "a.png").write_bytes(encoded_picture(3))
    source = SavedDataset(folder, id_column="key")
    assert [(texts.id, texts.captions, texts.has_image) for texts in source.texts()] == [
        ("7", (Caption("x"), Caption("y")), True),
        ("8", (), False),
    ]
    assert source.encoded(0) == encoded_picture(3)
    assert source[1].image is None
    outside = pa.table({"image": pa.array([{"bytes": None, "path": "/a.png"}], IMAGE), "caption": ["x"]})
    with pytest.raises(UserError, match="lies outside of the folder"):
        SavedDataset(write_saved(tmp_path / "out", [outside], 1))


def test_splits_are_named(tmp_path, saved):
    splits = tmp_path / "splits"
    for split in ("train", "validation"):
        write_saved(splits / split, [pictures_table(range(3))], 2)
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    assert len(SavedDataset(splits, "validation")) == 3
    assert len(SavedDataset(splits / "train")) == 3
    cases = [
        ((splits,), UserError, "is no saved data set; it has the splits train, validation: name one"),
        ((splits, "validatoin"), ArgumentError, "split: .* has no 'validatoin'; did you mean 'validation'"),
        ((saved, "train"), ArgumentError, "split: .* has no 'train'; it has no splits: set split=null"),
        ((tmp_path,), UserError, r"is no saved data set; there is no state\.json in it"),
        ((None,), ArgumentError, "folder: null must be the folder of the data set"),
        (("s3://bucket/saved",), ArgumentError, "is a URL, and these files are mapped into memory"),
    ]
    for arguments, kind, said in cases:
        with pytest.raises(kind, match=said) as error:
            SavedDataset(*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../a.arrow", "/etc/passwd", 3, None])
def test_a_file_elsewhere_is_not_read(saved, name):
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match=r"state\.json: names the file .*; save the data set again"):
        SavedDataset(saved)
    (saved / "state.json").write_text("[]")
    with pytest.raises(UserError, match=r"state\.json: names no file"):
        SavedDataset(saved)


def test_a_column_that_is_not_there(saved):
    with pytest.raises(UserError, match="has no column 'text'; its columns are image, caption, concept, id, unused"):
        SavedDataset(saved, caption_column="text")


def test_a_file_that_is_cut_off_does_not_kill_the_process(saved):
    source = SavedDataset(saved)
    assert source[12].captions == (Caption("picture number 12"),)
    file = saved / "data-00001-of-00002.arrow"
    os.truncate(file, 100)
    with pytest.raises(CorruptImage, match=r"arrow/2: .*has changed since it was opened"):
        source[12]
    assert source[3].captions == (Caption("picture number 3"),)
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: cannot be read as an Arrow stream"):
        SavedDataset(saved)


def test_places_beyond_a_batch_are_refused(saved):
    """Bytes of a column's offsets that somebody has changed: as large as numbers can be."""
    file = saved / "data-00000-of-00002.arrow"
    data = file.read_bytes()
    captions = pictures_table(range(4))["caption"].chunk(0)
    offsets = captions.buffers()[1].to_pybytes()[:20]
    place = data.index(offsets)
    file.write_bytes(data[: place + 8] + b"\xff\xff\xff\x7f" + data[place + 12 :])
    source = SavedDataset(saved)
    with pytest.raises(CorruptImage, match="cannot be read as an Arrow stream"):
        source[1]
    assert source[5].captions == (Caption("picture number 5"),)


def test_the_parts_are_mapped(saved):
    parts = ArrowParts([saved / "data-00000-of-00002.arrow"], ["image"])
    before = pa.total_allocated_bytes()
    kept = [parts.read(part, ["image", "unused"]) for part in range(3)]
    assert pa.total_allocated_bytes() - before < 1000 < sum(table.nbytes for table in kept)
