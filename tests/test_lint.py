"""``python -m mmlm.lint``: what it prints, the page, and the lists of ids."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmlm import lint
from tests.conftest import draw, write_lines
from tests.data.pictures import Pictures
from tests.data.tars import write_shards

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def sets(tmp_path):
    """Two folders: the second has an image of the first, its copy in another size, and one of its own."""
    train, val = tmp_path / "train", tmp_path / "val"
    train.mkdir()
    val.mkdir()
    pairs = [("red", "square"), ("blue", "circle"), ("green", "circle")]
    for colour, shape in pairs:
        draw(colour, shape, 64).save(train / f"{colour}.png")
    (train / "bad.png").write_bytes(b"no picture")
    captions = [{"image": f"{c}.png", "caption": f"a {c} {s}"} for c, s in pairs]
    write_lines(train, [*captions, {"image": "bad.png", "caption": HOSTILE}, {"image": None, "caption": "\x07 a bell"}])
    draw("red", "square", 64).save(val / "same.png")
    draw("blue", "circle", 64).resize((48, 48), Image.Resampling.BICUBIC).save(val / "copy.png")
    draw("yellow", "square", 64).save(val / "own.png")
    lines = [("same", "A red  square"), ("copy", "something else"), ("own", "a yellow square")]
    write_lines(val, [{"image": f"{name}.png", "caption": text} for name, text in lines])
    return train, val


def test_what_is_wrong_and_what_two_sets_share_is_told(sets, tmp_path, command):
    train, val = sets
    out = tmp_path / "out"
    done = command(lint, f"data=[train:{train},val:{val}]", f"out={out}", "max_tokens=6", "threads=2")
    assert done.status == 0, done
    said = " ".join(done.out.split())
    for part in (
        "1 cannot be read: is not an image; first:",
        "1 with a remark: a caption has control characters; first: line 5",
        "1 images of train are in val, pixel for pixel; first: red.png = same.png",
        "1 images of train look like one of val; first: blue.png ~ copy.png",
        "1 examples of val have only captions of train; first: same.png",
        f"ids to leave out of train: 1 in {out / 'drop.txt'}, 1 in {out / 'alike.txt'}",
    ):
        assert part in said, part
    assert (out / "drop.txt").read_text() == "red.png\n"
    assert (out / "alike.txt").read_text() == "blue.png\n"
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert [problem["set"] for problem in problems] == ["train", "train"]
    page = (out / "lint.html").read_text()
    assert "<script" not in page
    assert page.count("data:image/webp;base64,") >= 6
    HTMLParser().feed(page)


def test_one_set_alone_and_twice_the_same_image(tmp_path, command):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        draw("red", "square").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a red square")
    done = command(lint, f"data={folder}", f"out={tmp_path / 'out'}", "alike=false")
    assert (done.status, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert "taken as images with a .txt beside each: 2 examples" in said
    assert "1 groups of images with equal pixels; first: a.png = b.png" in said
    assert "1 captions that several examples have; first: 2 times: a red square" in said
    assert (tmp_path / "out" / "drop.txt").read_text() == ""


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("threads=0", "threads: 0 must be at least 1"),
        ("max_tokens=2", "max_tokens: 2 must be at least 3"),
        ("out={}/photos/a.png/x", "cannot be written"),
        ("vocab_size=9", "vocab_size: 9 must be at least"),
        ("data={}/missing", "there is no such file or folder"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, command, argument, said):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw("red", "square").save(folder / "a.png")
    (folder / "a.txt").write_text("a red square")
    given = {"data": f"data={folder}", "out": f"out={tmp_path / 'out'}"}
    given[argument.partition("=")[0]] = argument.format(tmp_path)
    assert said in command(lint, *given.values()).mistake


def test_shards_in_an_object_store_are_read(tmp_path, command, store):
    write_shards(tmp_path / "data", Pictures(3), [3])
    done = command(lint, f"data=[mine:{store('memory')}]", f"out={tmp_path / 'out'}", "threads=1")
    assert "mine: memory://bucket, taken as 1 tar shard: 3 examples" in done.out, done
