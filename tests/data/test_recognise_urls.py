"""What lies at a URL is recognised by the names that are there."""

import pytest

from mmlm.cli.named_paths import named_paths
from mmlm.cli.own_data import with_own_data
from mmlm.core.errors import UserError
from mmlm.data.own import OwnImages
from mmlm.data.recognise import recognise
from mmlm.data.stored import Url, place_of
from tests.data.pictures import Pictures
from tests.data.tables import pictures_table, write_parquet
from tests.data.tars import write_shards


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_shards_and_tables_are_recognised_as_by_their_path(tmp_path, store, protocol):
    data = tmp_path / "data"
    write_shards(data / "tars", Pictures(5), [3, 2])
    write_parquet(data / "table" / "data" / "a.parquet", pictures_table(range(4)), 3)
    url = store(protocol)
    for inside, what, local in (
        ("tars", "2 tar shards", data / "tars"),
        ("tars/", "2 tar shards", data / "tars"),
        ("tars/00001.tar", "the tar shard 00001.tar", data / "tars" / "00001.tar"),
        ("tars/{00000..00001}.tar", "the tar shards {00000..00001}.tar", data / "tars"),
        ("table", "1 Parquet file", data / "table"),
        ("table/data/*.parquet", "the Parquet files *.parquet", data / "table"),
    ):
        found = recognise(place_of(f"{url}/{inside}"))
        assert found.what == what
        assert list(found.source.texts()) == list(recognise(local).source.texts())
    tagged = [text.captions for text in recognise(place_of(f"{url}/tars"), "fr").source.texts()]
    assert {caption.language for captions in tagged for caption in captions} <= {"fr", "en", "de"}
    parts = [OwnImages(f"{url}/tars", part) for part in ("train", "validation")]
    assert [len(part) for part in parts] == [3, 2]
    assert list(parts[1].texts()) == list(OwnImages(str(data / "tars"), "validation").texts())


def test_what_is_not_recognised_is_told(tmp_path, store):
    write_shards(tmp_path / "data" / "train", Pictures(2), [2])
    write_shards(tmp_path / "data" / "val", Pictures(2), [2])
    write_shards(tmp_path / "data" / "mixed", Pictures(4), [2, 2])
    for number, name in enumerate(("train", "val")):
        (tmp_path / "data" / "mixed" / f"0000{number}.tar").rename(tmp_path / "data" / "mixed" / f"{name}-0.tar")
    url = store("memory")
    for inside, said in (
        ("", "holds the folders train, val; give one of them"),
        ("mixed", "holds files of train and val"),
        ("none", "there is nothing, or nothing that may be listed"),
        ("none/00000.tar", "there is no such shard"),
        ("none/*.parquet", "there is no such Parquet file"),
        ("val/00000.jpg", "tar shards (.tar) and Parquet files (.parquet) are read; there is nothing"),
    ):
        with pytest.raises(UserError) as error:
            recognise(place_of(f"{url}/{inside}"))
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no-such-protocol"):
        recognise(place_of("no-such-protocol://bucket/x"))


def test_urls_in_commands():
    notices: list[str] = []
    assert with_own_data(["data=s3://bucket/{00000..00099}.tar", "seed=1"], notices) == [
        "data=own",
        'data.path="s3://bucket/{00000..00099}.tar"',
        "seed=1",
    ]
    assert notices == [
        "data: a tenth of the images of s3://bucket/{00000..00099}.tar validates, by a hash of their ids "
        "(data.train.held_out=0.1)"
    ]
    assert named_paths("data", "[s3://bucket/val,mine:gs://b/x.tar,here:photos]") == {
        "val": Url("s3://bucket/val"),
        "mine": Url("gs://b/x.tar"),
        "here": place_of("photos"),
    }
    assert named_paths("data", "simplecache::s3://b/") == {"b": Url("simplecache::s3://b/")}
    with pytest.raises(UserError, match="two are called 'val'"):
        named_paths("data", "[s3://a/val,s3://b/val]")
