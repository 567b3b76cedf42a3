"""``python -m mmlm.pack``: what is packed reads back equal, and a packing goes on where it was stopped."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmlm import pack, train
from mmlm.commands import pack as packing_command
from mmlm.core.batch import Caption, Example
from mmlm.core.errors import UserError
from mmlm.data.emoji import Emoji
from mmlm.data.image_folder import ImageFolder
from mmlm.data.images import decode_image
from mmlm.data.mixture import Mixture
from mmlm.data.packing import ending_of, pack_file
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.recognise import recognise
from mmlm.data.sources import GivesBytes, Source, gives_bytes, texts_of
from mmlm.data.tar_shards import TarShards
from tests.conftest import TINY, write_lines
from tests.data.pictures import Pictures, encoded_picture, write_folder

EMOJI = ("data=emoji", "split=val_concepts")
SETTINGS = {"hands": ["noto"], "languages": ["en", "zh"], "keywords": True}


def packed(folder: Path, form: str) -> Source:
    if form == "tar":
        return TarShards(folder)
    return ParquetTable(
        str(folder / "*.parquet"), concept_column="concept", id_column="id", language_column="language", language="?"
    )


def assert_equal(one: Source, other: Source, ids: bool) -> None:
    assert len(one) == len(other)
    for index, (texts, others) in enumerate(zip(texts_of(one), texts_of(other), strict=True)):
        assert (texts.captions, texts.concept) == (others.captions, others.concept)
        assert texts.id == others.id or not ids
        if index % 10 == 0:
            assert torch.equal(one[index].image, other[index].image)


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_what_is_packed_reads_back_equal(tmp_path, command, form):
    written = {"hands": "[noto]", "languages": "[en,zh]", "keywords": "true"}
    settings = ",".join(f'"data.validation.val_concepts.{key}={value}"' for key, value in written.items())
    out = tmp_path / "out"
    arguments = (*EMOJI, f"overrides=[{settings}]", f"out={out}", f"format={form}", "shard_size=50", "threads=2")
    outcome = command(pack, *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    source = Emoji("val_concepts", **SETTINGS)
    read = packed(out, form)
    # The ids of a tar are its shard's name and a key; the old ones stand in its JSON.
    assert_equal(source, read, ids=form == "parquet")
    assert isinstance(read, GivesBytes)
    assert [read.encoded(i) for i in range(len(read))] == [source.encoded(i) for i in range(len(source))]
    assert_equal(recognise(out).source, source, ids=False)
    if form == "tar":
        assert [texts.id for texts in texts_of(read)][50] == "00001.tar/000000050"

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["examples"] == len(source)
    assert manifest["captions"] == sum(1 for _ in source.captions())
    assert sum(file["examples"] for file in manifest["files"]) == len(source)
    for file in manifest["files"]:
        content = (out / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    files = {file.name for file in out.iterdir()}
    shards = {file["name"] for file in manifest["files"]}
    assert files == shards | {"manifest.json"} | ({f"{name}.index" for name in shards} if form == "tar" else set())

    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir() if file.name in shards}
    outcome = command(pack, *arguments)
    assert f"{len(shards)} of {len(shards)} files are there already" in outcome.out
    assert {name: (out / name).stat().st_mtime_ns for name in shards} == before


def told(source: Source) -> list[list[tuple[str, str | None, str | None]]]:
    """The text, language and kind of each caption: captions are equal whatever their kinds."""
    return [[(c.text, c.language, c.kind) for c in texts.captions] for texts in texts_of(source)]


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_the_kinds_of_captions_are_kept(tmp_path, command, form):
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"{number}.png" for number in range(3)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded_picture(number))
    said = [{"alt": ["one", "two"], "title": "three"}, ["four"], {"title": ["five", "six"], "": "seven"}]
    write_lines(folder, [{"image": name, "captions": captions} for name, captions in zip(names, said, strict=True)])
    out = tmp_path / "out"
    assert command(pack, f"data={folder}", f"out={out}", f"format={form}", "shard_size=2").status == 0
    source = ImageFolder(folder)
    kinds = [[kind for _, _, kind in captions] for captions in told(source)]
    assert kinds == [["alt", "alt", "title"], [None], ["title", "title", ""]]
    found = recognise(out).source
    assert told(found) == told(source)
    examples = [source[number].captions for number in range(3)]
    assert [[c.kind for c in found[number].captions] for number in range(3)] == [
        [c.kind for c in captions] for captions in examples
    ]
    # Other kinds are other data, which are not mixed into the same folder.
    write_lines(folder, [{"image": name, "captions": list("ab")} for name in names])
    assert "of another packing" in command(pack, f"data={folder}", f"out={out}", f"format={form}", "shard_size=2").err
    assert told(recognise(out, "en").source)[0] == [(text, "en", kind) for text, _, kind in told(source)[0]]


def test_a_packing_that_was_stopped_goes_on(tmp_path, command, monkeypatch):
    (tmp_path / "in").mkdir()
    write_folder(tmp_path / "in", Pictures(22))
    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments = (f"data={tmp_path / 'in'}", "shard_size=5", "threads=1")
    assert command(pack, *arguments, f"out={whole}").status == 0
    written = []

    def failing(source, indices, texts, file):
        if len(written) == 2:
            file.with_name(f".{file.name}.part").write_bytes(b"half")
            raise UserError("the disk is full")
        written.append(file.name)
        return pack_file(source, indices, texts, file)

    monkeypatch.setattr(packing_command, "pack_file", failing)
    outcome = command(pack, *arguments, f"out={out}")
    assert (outcome.status, outcome.err) == (2, "mmlm: the disk is full\n")
    with (out / "packing.jsonl").open("a") as journal:
        journal.write('{"name": "0000')  # as it is when the computer stops
    shard = out / written[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(packing_command, "pack_file", lambda *a: written.append(a[3].name) or pack_file(*a))
    outcome = command(pack, *arguments, f"out={out}")
    assert outcome.status == 0
    assert "1 of 5 files are there already" in outcome.out
    assert written == ["00000.tar", "00001.tar", "00000.tar", "00002.tar", "00003.tar", "00004.tar"]
    for file in whole.glob("*.tar"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert not list(out.glob(".*"))
    assert not (out / "packing.jsonl").exists()
    assert_equal(ImageFolder(tmp_path / "in"), TarShards(out), ids=False)


def test_images_that_cannot_be_read_are_left_out_and_texts_alone_go_into_parquet(tmp_path, command):
    folder = tmp_path / "in"
    folder.mkdir()
    write_folder(folder, Pictures(6, corrupt=(2,), text_only=(4,)))
    out = tmp_path / "out"
    outcome = command(pack, f"data={folder}", f"out={out}", "format=parquet")
    assert outcome.status == 0
    assert "left out: 2.png: is not an image" in outcome.out
    assert "7 examples in 1 files" in outcome.out
    read = packed(out, "parquet")
    assert [texts.has_image for texts in texts_of(read)] == [True, True, True, False, False, False, True]
    assert read[3].image is None
    outcome = command(pack, f"data={folder}", f"out={tmp_path / 'tar'}")
    assert outcome.status == 2
    assert "has no image, and a tar shard has pairs only; use format=parquet" in outcome.err


class WithoutBytes:
    """Pictures that cannot be had encoded."""

    def __init__(self, count: int) -> None:
        self._pictures = Pictures(count)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Example:
        return self._pictures[index]

    def captions(self) -> Iterator[Caption]:
        return self._pictures.captions()


def test_a_source_without_encoded_images_becomes_png(tmp_path):
    source = Mixture({"a": WithoutBytes(3), "b": Pictures(2)})
    assert not gives_bytes(source)
    texts = list(texts_of(source))
    for listed in (texts, None):
        packed_file = pack_file(source, range(1, 5), listed and listed[1:], tmp_path / "0.tar")
        assert (packed_file.examples, packed_file.captions) == (4, 12)
        read = TarShards(tmp_path)
        for index in range(4):
            assert torch.equal(read[index].image, source[index + 1].image)
            assert (read[index].captions, read[index].concept) == (
                source[index + 1].captions,
                source[index + 1].concept,
            )


def test_unusual_formats_become_png_and_usual_ones_stay(tmp_path):
    images = {}
    for name, form in (
        ("a.avif", "AVIF"),
        ("b.jp2", "JPEG2000"),
        ("c.webp", "WEBP"),
        ("d.jpg", "JPEG"),
        ("e.gif", "GIF"),
    ):
        from_picture(tmp_path / name, form)
        images[name] = (tmp_path / name).read_bytes()
    write_lines(tmp_path, [{"image": name, "caption": name} for name in images])
    source = ImageFolder(tmp_path)
    pack_file(source, range(5), list(source.texts()), tmp_path / "0.tar")
    read = TarShards(tmp_path)
    assert [ending_of(read.encoded(i)) for i in range(5)] == ["png", "png", "webp", "jpg", "gif"]
    assert [read.encoded(i) for i in (2, 3, 4)] == list(images.values())[2:]
    for index in range(5):
        assert torch.equal(read[index].image, source[index].image)


def from_picture(file: Path, form: str) -> None:
    Image.fromarray(decode_image(encoded_picture(1), "").permute(1, 2, 0).numpy()).save(file, form)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data=emoji", "split=val"), "split: 'val' is no split of data=emoji"),
        (("data=emoji", "shard_size=0"), "shard_size: 0 must be at least 1"),
        (("data=emoji", "threads=0"), "threads: 0 must be at least 1"),
        (("data=emoji", "format=zip"), "format"),
        (("data={shapes}", "split=train"), "split: is for an option of configs/data, and "),
        (("data={shapes}", "overrides=[seed=1]"), "overrides: is for an option of configs/data, and "),
        (("data=nothing",), "nothing: there is no such file or folder"),
        (("data={shapes}", "out={shapes}"), "holds .*; give a new or an empty folder"),
        (("data={shapes}", "out={shapes}/captions.jsonl"), "captions.jsonl cannot be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, command, shapes, arguments, said):
    given = [argument.format(shapes=shapes) for argument in arguments]
    given += [] if any(argument.startswith("out=") for argument in given) else [f"out={tmp_path / 'out'}"]
    outcome = command(pack, *given)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert_matches(said, outcome.err)
    assert not (tmp_path / "out").exists()


def assert_matches(said: str, err: str) -> None:
    with pytest.raises(UserError, match=said):
        raise UserError(err)


def test_other_data_do_not_go_into_the_same_folder(tmp_path, command, shapes):
    out = tmp_path / "out"
    assert command(pack, f"data={shapes}", f"out={out}").status == 0
    outcome = command(pack, f"data={shapes}", f"out={out}", "shard_size=3")
    assert outcome.status == 2
    assert "holds files of another packing (shard_size was 1000, and is 3); give a new" in outcome.err
    write_lines(shapes, [{"image": "red_square.png", "caption": "other"}])
    outcome = command(pack, f"data={shapes}", f"out={out}")
    assert "holds files of another packing (examples was 8, and is 1)" in outcome.err


def test_a_run_trains_on_packed_shapes(tmp_path, command, shapes):
    for split in ("train", "validation"):
        outcome = command(pack, f"data={shapes}", f"out={tmp_path / 'packed' / split}", "shard_size=3", "threads=1")
        assert outcome.status == 0
    (tmp_path / "packed" / "train" / "00001.tar").unlink()
    tiny = [token for token in TINY if not token.startswith("data=")]
    options = ("data=tar", f"data.path={tmp_path / 'packed'}", "data.shuffle_window=2", f"runs={tmp_path / 'runs'}")
    outcome = command(train, *tiny, *options)
    assert (outcome.status, outcome.err) == (0, "")
    assert "2 tar shards: 1 missing by their numbers (00001.tar)" in outcome.out
    assert "5 images to train on, validation 8 to validate on" in outcome.out


def test_shards_in_an_object_store_are_packed(tmp_path, command, store):
    (tmp_path / "in").mkdir()
    write_folder(tmp_path / "in", Pictures(3))
    assert command(pack, f"data={tmp_path / 'in'}", f"out={tmp_path / 'data'}").status == 0
    out = tmp_path / "out"
    outcome = command(pack, f"data={store('memory')}", f"out={out}", "format=parquet")
    assert "memory://bucket, taken as 1 tar shard: 3 examples" in outcome.out, outcome
    assert_equal(recognise(out).source, ImageFolder(tmp_path / "in"), ids=False)
