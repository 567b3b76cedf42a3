"""The index of a tar shard: what it pairs, what it refuses, and when it is made again."""

import os
import tarfile

import pytest

from mmlm.core.errors import UserError
from mmlm.data.tar_index import index_beside, make_index, rows_of, summaries
from mmlm.data.tar_members import read_members, split_name
from tests.data.pictures import encoded_picture
from tests.data.tars import sample, write_tar

PICTURE = encoded_picture(0)


def keys(shard) -> list[str]:
    return rows_of(shard, make_index(shard).digest)["key"].to_pylist()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0017.jpg", ("0017", "jpg")),
        ("x/y.z/0017.JPG", ("x/y.z/0017", "jpg")),
        ("22.05.png", ("22", "05.png")),
        ("a.outputs.txt", ("a", "outputs.txt")),
        ("README", ("README", "")),
        (".DS_Store", ("", "ds_store")),
        ("x/._0017.jpg", ("", "_0017.jpg")),
        ("../../etc/0017.jpg", ("../../etc/0017", "jpg")),
    ],
)
def test_a_key_ends_at_the_first_dot(name, split):
    assert split_name(name) == split


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_texts_are_found_wherever_they_lie(tmp_path, form):
    long = "d" * 90 + "/" + "é" * 40 if form == tarfile.USTAR_FORMAT else "d" * 120 + "/" + "é" * 120
    texts = [("b.txt", "of b"), (f"{long}.json", '{"caption": "of long"}'), ("a.txt", "\ufeffof\n a "), ("a.cls", "3")]
    images = [("a.png", PICTURE), (f"{long}.webp", b"12345"), ("b.jpeg", b"")]
    shard = write_tar(tmp_path / "0.tar", [*texts, *images, ("notes.md", "x")], form)
    summary = make_index(shard)
    rows = rows_of(shard, summary.digest)
    assert rows.drop_columns(["offset"]).to_pylist() == [
        {"key": "b", "ending": "jpeg", "length": 0, "txt": "of b", "json": None, "cls": None},
        {"key": long, "ending": "webp", "length": 5, "txt": None, "json": '{"caption": "of long"}', "cls": None},
        {"key": "a", "ending": "png", "length": len(PICTURE), "txt": "of a", "json": None, "cls": "3"},
    ]
    with shard.open("rb") as file:
        for offset, (_, content) in zip(rows["offset"].to_pylist(), reversed(images), strict=True):
            file.seek(offset)
            assert file.read(len(content)) == content
    assert [summary.complete(texts) for texts in (["txt"], ["json"], ["cls"], ["json", "cls"])] == [2, 1, 1, 2]


def test_half_samples_and_odd_members_are_counted(tmp_path):
    shard = tmp_path / "0.tar"
    members = [*sample("whole"), ("image.png", PICTURE), ("text.txt", "x"), ("bad.txt", b"\xff\xfe"), ("bad.png", b"")]
    members += [("blank.png", b""), ("blank.txt", " \n"), ("list.png", b""), ("list.json", "[1]"), ("deep.png", b"")]
    write_tar(shard, [*members, ("deep.json", "[" * 200_000)])
    with tarfile.open(shard, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    summary = make_index(shard)
    assert rows_of(shard, summary.digest)["key"].to_pylist() == ["whole"]
    assert (summary.kinds[0], summary.texts_alone, summary.links) == (5, 1, 4)
    assert summary.unusable == {"not UTF-8": 1, "blank": 1, "no JSON object": 2}


def test_names_that_lead_elsewhere_are_keys_only(tmp_path):
    names = ["../../up", "/etc/absolute", "a\nb", "c\\d", "\udcff"]
    shard = write_tar(tmp_path / "in" / "0.tar", [m for name in names for m in sample(name)])
    assert keys(shard) == ["../../up", "/etc/absolute", "a\nb", "c\\d", "\\udcff"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0.tar", "0.tar.index", "in"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([*sample("a"), *sample("a")], r"a.png at byte [\d,]+ has the key of a.png before it"),
        ([("a.png", PICTURE), ("a.jpg", PICTURE)], r"a.jpg at byte [\d,]+ has the key of a.png before it"),
        ([("a.txt", "1"), ("b.txt", "2"), ("a.txt", "1")], r"a.txt at byte [\d,]+ has the key of a.txt before it"),
    ],
)
def test_two_members_of_one_name_are_refused(tmp_path, members, said):
    with pytest.raises(UserError, match=rf"0.tar: {said}; which members belong together"):
        read_members(write_tar(tmp_path / "0.tar", members))


def test_a_shard_that_is_cut_anywhere_is_refused_with_the_byte(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [*sample("a"), *sample("b" * 200)], tarfile.GNU_FORMAT)
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    assert read_members(shard).samples.keys() == {"a", "b" * 200}
    for length in [*range(0, end + 512, 64), end - 1, end + 511]:
        shard.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"0.tar: is (cut off|damaged|empty|no tar).*make it anew") as error:
            read_members(shard)
        if length >= 512:  # one member at least begins before the cut
            assert "byte" in str(error.value), length
    shard.write_bytes(whole[: end + 512])
    assert len(read_members(shard).samples) == 2


def test_what_is_no_tar_is_said(tmp_path):
    shard = tmp_path / "0.tar"
    shard.write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(UserError, match="is compressed; unpack it"):
        read_members(shard)
    shard.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(UserError, match=r"0.tar: is no tar"):
        read_members(shard)
    whole = bytearray(write_tar(shard, [*sample("a"), *sample("b")]).read_bytes())
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[2].offset
    whole[third + 10] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(UserError, match=f"is damaged at byte {third:,}: there is no header"):
        read_members(shard)


def test_an_index_is_kept_until_its_shard_changes(tmp_path):
    shard = write_tar(tmp_path / "0.tar", sample("a"))
    (first,) = summaries([shard])
    written = index_beside(shard).stat().st_mtime_ns
    assert summaries([shard]) == [first]
    assert index_beside(shard).stat().st_mtime_ns == written, "not made again"

    os.utime(shard, ns=(1, 1))
    (touched,) = summaries([shard])
    assert (touched.digest, touched.modified) == (first.digest, 1)
    write_tar(shard, sample("b"))
    (second,) = summaries([shard])
    assert keys(shard) == ["b"]
    with pytest.raises(UserError, match=r"0.tar: has changed since its index was read"):
        rows_of(shard, first.digest)
    assert rows_of(shard, second.digest)["key"].to_pylist() == ["b"]


def test_a_damaged_index_is_made_again(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [*sample("a"), *sample("b")])
    good, index = make_index(shard), index_beside(shard)
    whole = index.read_bytes()
    for place in [0, 30, 60, *range(4096, len(whole), 97), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        index.write_bytes(damaged)
        assert summaries([shard]) == [good]
        assert rows_of(shard, good.digest)["key"].to_pylist() == ["a", "b"], place
        assert index.read_bytes() == whole
    for length in (0, 10, 4095, 4096, len(whole) - 1):
        index.write_bytes(whole[:length])
        assert summaries([shard]) == [good]
        assert index.read_bytes() == whole, length


def test_where_the_folder_cannot_be_written_the_index_goes_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard = write_tar(tmp_path / "in" / "0.tar", sample("a"))
    index_beside(shard).mkdir()  # nobody can write a file of that name, not even root
    (summary,) = summaries([shard])
    assert rows_of(shard, summary.digest)["key"].to_pylist() == ["a"]
    (kept,) = (tmp_path / "cache" / "mmlm" / "tar").iterdir()
    assert kept.name.startswith("0.tar-")
    written = kept.stat().st_mtime_ns
    assert summaries([shard]) == [summary]
    assert kept.stat().st_mtime_ns == written
    monkeypatch.setenv("XDG_CACHE_HOME", str(shard))
    with pytest.raises(UserError, match=r"0.tar.index: cannot be written .*, nor can .*; make the folder"):
        summaries([shard])


def test_many_shards_are_indexed_at_once_and_that_is_said(tmp_path, capsys):
    shards = [write_tar(tmp_path / f"{n}.tar", sample(f"{n}")) for n in range(9)]
    found = summaries(shards)
    assert [rows_of(s, summary.digest)["key"].to_pylist() for s, summary in zip(shards, found, strict=True)] == [
        [f"{n}"] for n in range(9)
    ]
    assert "mmlm: indexing 9 tar shards in " in capsys.readouterr().err
    assert summaries(shards) == found
    assert capsys.readouterr().err == ""
