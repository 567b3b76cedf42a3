"""Tar shards as a source: what is on disk comes out as examples, and what becomes of it in mid-run."""

import json
import os
import pickle
from itertools import islice

import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.data import tar_shards
from mmlm.data.images import decode_image
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import GivesBytes, read_example, texts_of
from mmlm.data.tar_shards import TarShards
from tests.data.pictures import Pictures, encoded_picture
from tests.data.tars import sample, write_shards, write_tar
from tests.data.test_loader import make_loader

PICTURE = encoded_picture(0)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def captions_of(source) -> list[list[Caption]]:
    return [list(texts.captions) for texts in texts_of(source)]


def test_examples_are_those_of_the_shards_in_order(tmp_path):
    write_shards(tmp_path, Pictures(7), [3, 1, 3])
    source = TarShards(tmp_path, language="en")
    assert (len(source), source.shard_sizes()) == (7, [3, 1, 3])
    assert [t.id for t in texts_of(source)] == [
        *("00000.tar/0", "00000.tar/1", "00000.tar/2"),
        *("00001.tar/3", "00002.tar/4", "00002.tar/5", "00002.tar/6"),
    ]
    for index, texts in enumerate(texts_of(source)):
        example = source[index]
        assert torch.equal(example.image, decode_image(encoded_picture(index), ""))
        assert (example.id, example.captions, example.concept) == (texts.id, texts.captions, None)
        assert example.captions == (Caption(f"picture number {index}", "en"),)
        assert isinstance(source, GivesBytes)
        assert source.encoded(index) == encoded_picture(index)
    assert remarks_of(source) == []
    for index in (-1, 7):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("files", "found", "missing"),
    [
        ("*.tar", "0138", "5 missing by their numbers (00002.tar, 00004.tar, 00005.tar, 00006.tar, 00007.tar)"),
        ("{00000..00003}.tar", "013", "1 missing by their numbers (00002.tar)"),
        (["{00002..00003}.tar", "00000.tar"], "30", "1 missing by their numbers (00002.tar)"),
        ("0000{3,0}.tar", "30", ""),
        ("0000[01].tar", "01", ""),
        (["0000[123].tar", "00001.tar"], "13", "1 missing by their numbers (00002.tar)"),
        ("{0..1}000{0..4}.tar", "013", "7 missing by their numbers (00002.tar, 00004.tar, 10000.tar, 10001.tar, 10002"),
    ],
)
def test_files_by_names_and_patterns_with_gaps_told(tmp_path, files, found, missing):
    for number in (0, 1, 3, 8):
        write_tar(tmp_path / "a {1} [2]" / f"{number:05d}.tar", sample("a", number))
    source = TarShards(tmp_path / "a {1} [2]", files)
    assert [t.id[4] for t in texts_of(source)] == list(found)
    assert len(remarks_of(source)) == bool(missing)
    assert missing in "".join(remarks_of(source))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("train/*.tar", "train/.*tar: there is no such shard$"),
        ("more.tar", "more.tar: there is no such shard; .* has 00000.tar$"),
        (["00000.tar", "{00001..00004}.tar"], "{00001..00004}.tar: there is no such shard"),
        ("{3..1}.tar", "files: the range {3..1} of '{3..1}.tar' goes down"),
        ("{0..9999999999}.tar", "stands for more than 1,000,000 names"),
        ("{0..9999}{0..9999}.tar", "stands for more than 1,000,000 names"),
        ([], "names no shard"),
    ],
)
def test_shards_that_are_not_there(tmp_path, files, said):
    write_tar(tmp_path / "00000.tar", sample("a"))
    with pytest.raises(UserError, match=said) as error:
        TarShards(tmp_path, files)
    one_line(error)


def test_ids_are_unique_over_shards_of_one_name(tmp_path):
    for folder in ("2023", "2024"):
        write_tar(tmp_path / folder / "0.tar", sample("0017"))
    assert [t.id for t in texts_of(TarShards(tmp_path, "*/*.tar"))] == ["2023/0.tar/0017", "2024/0.tar/0017"]


def test_texts_of_every_kind(tmp_path):
    languages = {"captions": ["ein Bild", "un image"], "language": ["de", "fr"], "concept": "c", "alt": "alternative"}
    beside = [
        ("a.json", json.dumps(languages)),
        ("a.cls", "tabby_cat"),
        ("b.json", '{"caption": "b", "language": "sw"}'),
    ]
    beside += [("c.json", '{"caption": null, "captions": 3}'), ("d.txt", "only text"), ("b.cls", "7")]
    write_tar(tmp_path / "0.tar", [*beside, ("a.txt", "a\n"), *((f"{key}.png", PICTURE) for key in "abcd")])
    de, fr, b = Caption("ein Bild", "de"), Caption("un image", "fr"), Caption("b", "sw")
    assert captions_of(TarShards(tmp_path)) == [[Caption("a")], [Caption("only text")]]
    assert captions_of(TarShards(tmp_path, texts=["json"], language="en")) == [[de, fr], [b], []]
    assert captions_of(TarShards(tmp_path, texts=["txt", "json"], json_captions="alt", json_language="no")) == [
        [Caption("a"), Caption("alternative")],
        [],
        [],
        [Caption("only text")],
    ]
    assert captions_of(TarShards(tmp_path, texts=["cls"])) == [
        [Caption("a photo of a tabby cat")],
        [Caption("a photo of a 7")],
    ]
    (tmp_path / "names.json").write_text('{"7": "lynx"}')
    named = TarShards(tmp_path, texts=["cls", "json"], caption="see: {}", names=tmp_path / "names.json")
    assert [t.concept for t in texts_of(named)] == ["c", "7", None]
    assert [t.captions[0].text for t in texts_of(named) if t.captions] == ["see: tabby_cat", "see: lynx"]
    assert remarks_of(TarShards(tmp_path)) == [f"{tmp_path / '0.tar'}: left out 2 images without txt"]


def test_what_a_person_types_stays_text(tmp_path):
    texts = ["<|endoftext|>", "a\x00b\x1b[31m", "مرحبا", "x" * 1_000_000]
    write_tar(tmp_path / "0.tar", [m for n, text in enumerate(texts) for m in sample(f"{n}", caption=text)])
    assert [c.text for c in TarShards(tmp_path).captions()] == texts


def test_images_that_cannot_be_decoded_are_named(tmp_path):
    contents = [PICTURE, b"", PICTURE[:-30], b"<html>", PICTURE]
    names = ["0.jpg", "1.png", "2.png", "3.png", "4.webp"]  # a PNG whatever it is called
    members = [
        m for n, (name, data) in enumerate(zip(names, contents, strict=True)) for m in ((name, data), (f"{n}.txt", "x"))
    ]
    write_tar(tmp_path / "s.tar", members)
    source = TarShards(tmp_path)
    found = [read_example(source, index) for index in range(5)]
    reasons = ["the file is empty", "is damaged", "is not an image"]
    for number, reason in zip((1, 2, 3), reasons, strict=True):
        assert isinstance(found[number], CorruptImage)
        assert str(found[number]).startswith(f"s.tar/{number}: {reason}")
    assert torch.equal(found[0].image, found[4].image)


def test_what_is_passed_over_is_counted(tmp_path):
    write_tar(
        tmp_path / "00000.tar", [*sample("a"), ("b.png", PICTURE), ("c.txt", "x"), ("d.txt", b"\xff"), ("d.png", b"")]
    )
    write_tar(tmp_path / "00001.tar", [])
    write_tar(tmp_path / "00003.tar", sample("a"))
    source = TarShards(tmp_path)
    assert (len(source), source.shard_sizes()) == (2, [1, 0, 1])
    assert list(remarks_of(source)) == [
        "3 tar shards: 1 missing by their numbers (00002.tar)",
        "3 tar shards: left out 2 images without txt, 1 texts without an image",
        "3 tar shards: texts that cannot be used: 1 not UTF-8",
        "3 tar shards: 1 without a sample (00001.tar)",
    ]
    assert [source[index].id for index in (0, 1)] == ["00000.tar/a", "00003.tar/a"]


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        (
            [("22.05.png", PICTURE), ("22.05.txt", "x")],
            {},
            "no sample .* wants KEY.jpg .* are '05.png', '05.txt'; rename",
        ),
        ([("a.input.jpg", PICTURE), ("a.outputs.txt", "x")], {}, "are 'input.jpg', 'outputs.txt'"),
        ([("a.png", PICTURE), ("b.txt", "x")], {}, "are 'png', 'txt'"),
        (sample("a"), {"texts": ["json", "cls"]}, "KEY.json or KEY.cls, .* set texts"),
        ([], {}, "0.tar: no sample in it; give shards"),
        (
            [("a.png", PICTURE), ("a.json", '{"url": "u", "alt": "x"}')],
            {},
            "its JSON has no 'captions' or 'caption', but url, alt; set",
        ),
        (sample("a"), {"texts": ["text"]}, r"texts: \['text'\] must be some of txt, json, cls"),
        (sample("a"), {"caption": "a photo"}, "must have {} once"),
    ],
)
def test_shards_without_samples_and_settings_are_refused_at_the_start(tmp_path, members, options, said):
    write_tar(tmp_path / "0.tar", members)
    for _ in ("indexed now", "indexed before"):
        with pytest.raises(UserError, match=said) as error:
            TarShards(tmp_path, **options)
        one_line(error)


def test_a_folder_has_to_be_given():
    with pytest.raises(ArgumentError, match="folder: null must be"):
        TarShards(None)


def test_a_worker_gets_the_list_as_it_was_found(tmp_path):
    write_shards(tmp_path, Pictures(4), [2, 2])
    source = TarShards(tmp_path)
    source[3]
    write_tar(tmp_path / "00001b.tar", sample("new"))
    copy = pickle.loads(pickle.dumps(source))
    assert list(texts_of(copy)) == list(texts_of(source))
    assert torch.equal(copy[3].image, source[3].image)
    assert len(TarShards(tmp_path)) == 5
    assert len(pickle.dumps(source)) < 2000


@pytest.mark.parametrize("before", [True, False], ids=["open", "not open yet"])
@pytest.mark.parametrize("what", ["gone", "cut off", "other", "touched", "index gone", "index damaged"])
def test_a_shard_that_changes_while_a_run_goes_on(tmp_path, before, what):
    """Its images are named or as they were, and the other shards' stay."""
    write_shards(tmp_path, Pictures(4), [2, 2])
    source, shard = TarShards(tmp_path), tmp_path / "00001.tar"
    if before:
        source[3]
    if what == "gone":
        shard.unlink()
    elif what == "cut off":
        os.truncate(shard, 2000)
    elif what == "other":
        write_tar(tmp_path / "new", sample("new")).replace(shard)
    elif what == "touched":
        os.utime(shard, ns=(1, 1))
    elif what == "index gone":
        (tmp_path / "00001.tar.index").unlink()
    else:
        (tmp_path / "00001.tar.index").write_bytes(b"x")
    stays = what in ("touched", "index gone", "index damaged") or (before and what in ("gone", "other"))
    for _ in range(2):
        found = read_example(source, 3)
        assert isinstance(found, CorruptImage) is not stays
        if not stays:
            message = {"gone": "there is no such shard", "cut off": "cut off", "other": "has changed since"}[what]
            assert message in str(found)
            assert str(found).startswith("00001.tar/")
        assert torch.equal(source[1].image, decode_image(encoded_picture(1), ""))


def test_one_shard_goes_on_being_read_by_many(tmp_path, tokenizer):
    """Fewer shards than ranks x workers, and windows: every example once an epoch, whoever reads it."""
    write_shards(tmp_path, Pictures(8), [8])
    loaders = [
        make_loader(tokenizer, TarShards(tmp_path), batch_size=4, workers=0, rank=rank, world_size=4, shuffle_window=2)
        for rank in range(4)
    ]
    seen = [name for loader in loaders for batch in islice(loader, 2) for name in batch.ids]
    assert sorted(seen) == [f"00000.tar/{n}" for n in range(8)]


def test_a_whole_batch_of_a_shard_that_is_gone_ends_the_run(tmp_path, tokenizer):
    source = TarShards(write_shards(tmp_path, Pictures(8), [8]))
    (tmp_path / "00000.tar").unlink()
    loader = make_loader(tokenizer, source, batch_size=4)
    with pytest.raises(UserError, match=r"all 4 images of a batch are corrupt .*there is no such shard"):
        next(iter(loader))


def test_what_is_kept_of_open_shards_is_bounded_over_epochs(tmp_path, monkeypatch):
    write_shards(tmp_path, Pictures(16), [2] * 8)
    whole = TarShards(tmp_path)
    for index in range(16):
        whole[index]
    count, taken = whole.held
    assert count == 8
    bound = taken // 3
    monkeypatch.setattr(tar_shards, "OPEN_BYTES", bound)
    source, kept = TarShards(tmp_path), []
    for _ in range(5):
        for index in [5, 14, *range(16)]:
            assert source[index].id == whole[index].id
            assert source.held[1] <= bound
        kept.append(source.held)
    assert kept == [kept[0]] * 5
    monkeypatch.setattr(tar_shards, "OPEN_SHARDS", 2)
    source = TarShards(tmp_path)
    assert [source[index].id for index in range(16)] == [whole[index].id for index in range(16)]
    assert source.held[0] == 2
