"""Files by URL: the same examples as by path, and an object store that is slow, or breaks, or has not the file."""

import io
import pickle
import threading
from pathlib import Path

import pytest
import torch

from mmlm.core.errors import CorruptImage, UserError
from mmlm.data import stored
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.stored import OpenedFile, Patience, Url, UrlFile, matching_urls, place_of, read_range, version_of
from mmlm.data.tar_shards import TarShards
from tests.data.pictures import Pictures
from tests.data.tables import pictures_table, write_parquet
from tests.data.tars import write_shards
from tests.data.test_loader import make_loader

AT_ONCE = Patience(timeout_s=0.01, tries=3, first_wait_s=0)
DATA = bytes(range(200))


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_tar_shards_by_url_are_those_by_path(tmp_path, store, protocol):
    write_shards(tmp_path / "data", Pictures(9), [4, 3, 2])
    local = TarShards(tmp_path / "data")
    url = store(protocol)
    for files in ("*.tar", "{00000..00004}.tar", [f"{url}/0000{number}.tar" for number in range(3)]):
        source = pickle.loads(pickle.dumps(TarShards(url, files)))
        assert list(source.texts()) == list(local.texts())
        assert source.shard_sizes() == [4, 3, 2]
        assert [source.encoded(index) for index in range(9)] == [local.encoded(index) for index in range(9)]
        assert torch.equal(source[5].image, local[5].image)
    assert any(
        "2 missing by their numbers (00003.tar, 00004.tar)" in line
        for line in TarShards(url, "{00000..00004}.tar").remarks()
    )
    assert len(list((tmp_path / "cache" / "mmlm" / "tar").glob("*.index"))) == 3
    with pytest.raises(UserError, match=r"none\.tar: there is no such shard$"):
        TarShards(url, "none.tar")


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_parquet_by_url_is_that_by_path(tmp_path, store, protocol):
    write_parquet(tmp_path / "data" / "a.parquet", pictures_table(range(7)), 3)
    write_parquet(tmp_path / "data" / "more" / "a.parquet", pictures_table(range(4)), 3)
    local = ParquetTable("**/*.parquet", folder=tmp_path / "data")
    source = pickle.loads(pickle.dumps(ParquetTable("**/*.parquet", folder=store(protocol))))
    assert [texts.id for texts in source.texts()][6:8] == ["a.parquet/6", "more/a.parquet/0"]
    assert list(source.texts()) == list(local.texts())
    assert source.shard_sizes() == [3, 3, 1, 3, 1]
    assert [source.encoded(index) for index in range(11)] == [local.encoded(index) for index in range(11)]


def test_images_beside_a_parquet_file_by_url(tmp_path, store):
    table = pictures_table([0, 1])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(Pictures(3).encoded(2))
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "none.png"}]
    write_parquet(tmp_path / "data" / "a.parquet", table.set_column(0, "image", [cells]), 2)
    source = ParquetTable(f"{store('memory')}/a.parquet")
    assert source.encoded(0) == Pictures(3).encoded(2)
    with pytest.raises(CorruptImage, match=r"^memory://bucket/none\.png: there is no such file"):
        source[1]


def test_a_shard_that_is_replaced_in_its_store_is_indexed_again(tmp_path, store):
    write_shards(tmp_path / "data", Pictures(4), [4])
    assert len(TarShards(store("memory"))) == 4
    write_shards(tmp_path / "data", Pictures(2), [2])
    assert len(TarShards(store("memory"))) == 2


def test_worker_processes_read_urls(tmp_path, tokenizer, store):
    write_shards(tmp_path / "data", Pictures(8), [5, 3])
    source, local = TarShards(store("file")), TarShards(tmp_path / "data")
    by_url, by_path = (
        next(iter(make_loader(tokenizer, one, batch_size=4, workers=workers, shuffle_window=1)))
        for one, workers in ((source, 1), (local, 0))
    )
    assert by_url.ids == by_path.ids
    assert torch.equal(by_url.images, by_path.images)


class System:
    """An object store that does what ``acts`` say, one for each question, and then answers."""

    def __init__(self, *acts: object) -> None:
        self.acts, self.asked = list(acts), 0
        self.never = threading.Event()

    def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        self.asked += 1
        act = self.acts.pop(0) if self.acts else None
        if isinstance(act, Exception):
            raise act
        if act == "stall":
            self.never.wait()
        return DATA[start:end]

    def invalidate_cache(self) -> None:
        pass

    def info(self, path: str) -> dict[str, object]:
        return {"type": "file", "size": len(DATA), "ETag": "1"}


@pytest.fixture
def system(monkeypatch):
    """``system(*acts)``: the store of every URL."""
    made: list[System] = []

    def make(*acts: object) -> System:
        made.append(System(*acts))
        monkeypatch.setattr(stored, "_system", lambda url: (made[-1], url.text))
        return made[-1]

    yield make
    for one in made:
        one.never.set()


@pytest.mark.parametrize("acts", [("stall",), (ConnectionError("reset"), "stall"), (ValueError("not of this store"),)])
def test_a_read_that_stalls_or_breaks_is_tried_again(system, acts):
    store = system(*acts)
    assert read_range(Url("x://a"), 3, 4, AT_ONCE) == DATA[3:7]
    assert store.asked == len(acts) + 1


@pytest.mark.parametrize(
    ("act", "said"),
    [("stall", "no answer within 0.01 s; 3 tries"), (ConnectionError("reset\nby peer"), "reset; 3 tries")],
)
def test_after_the_last_try_it_is_one_named_line(system, act, said):
    store = system(*[act] * 5)
    with pytest.raises(OSError, match="x://a") as error:
        read_range(Url("x://a"), 0, 4, AT_ONCE)
    assert (error.value.strerror, error.value.filename, store.asked) == (said, "x://a", 3)


def test_what_is_not_there_is_not_asked_for_again(system):
    store = system(FileNotFoundError("gone"))
    with pytest.raises(FileNotFoundError) as error:
        read_range(Url("x://a"), 0, 4, AT_ONCE)
    assert (error.value.strerror, store.asked) == ("gone", 1)


def test_the_waits_double(system, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(stored.time, "sleep", waits.append)
    system(*[ConnectionError("reset")] * 3)
    assert read_range(Url("x://a"), 0, 1, Patience(timeout_s=60, tries=4, first_wait_s=1)) == DATA[:1]
    assert waits == [1, 2, 4]


def test_an_image_whose_store_does_not_answer_is_corrupt(tmp_path, store, monkeypatch):
    write_shards(tmp_path / "data", Pictures(4), [4])
    source = TarShards(store("memory"))

    def fails(self: OpenedFile, offset: int, length: int) -> bytes:
        raise OSError(5, "no answer within 60 s; 4 tries", "memory://bucket/00000.tar")

    monkeypatch.setattr(OpenedFile, "read", fails)
    with pytest.raises(
        CorruptImage, match=r"^00000\.tar/1: its shard cannot be read \(no answer within 60 s; 4 tries\)"
    ):
        source[1]


def test_a_url_as_a_file_of_python(system):
    store = system()
    file = io.BufferedReader(UrlFile(Url("x://a")), 64)
    assert file.read(10) == DATA[:10]
    assert file.read(40) == DATA[10:50]
    assert store.asked == 1, "it reads ahead"
    assert file.seek(-7, io.SEEK_END) == 193
    assert file.read() == DATA[193:]
    assert file.read(1) == b""
    assert version_of(Url("x://a")).size == len(DATA)


def test_a_protocol_that_nobody_knows_is_told(tmp_path):
    for url in ("nosuch://bucket/a.tar", "nosuch://bucket/*.tar"):
        with pytest.raises(UserError, match=r"nosuch://bucket.*: Protocol not known: nosuch; give a path"):
            TarShards(place_of("nosuch://bucket").text, url)


def test_urls_of_a_pattern(store, tmp_path: Path):
    write_shards(tmp_path / "data", Pictures(4), [2, 2])
    assert [place_of(url).name for url in matching_urls(f"{store('file')}/*.tar")] == ["00000.tar", "00001.tar"]
    assert place_of("a/b.tar") == Path("a/b.tar")
