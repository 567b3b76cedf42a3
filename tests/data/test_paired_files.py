"""Images with a text file beside each: pairs by name, captions by line, and what is refused."""

import pickle

import pytest

from mmlm.core.errors import UserError
from mmlm.data.paired_files import PairedFiles
from tests.conftest import draw


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / ".cache").mkdir()
    for name, text in {
        "22.05": "a red square\n\n  un carré   rouge \n",
        "b": "\ufeffa circle, with a comma\r\n",
        "more/b": "<|endoftext|> as a word",
    }.items():
        draw("red", "square").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / ".cache" / "x.png").write_bytes(b"no picture")
    (tmp_path / "notes.md").write_text("not looked at")
    return tmp_path


def test_each_line_beside_an_image_is_a_caption(pairs):
    source = pickle.loads(pickle.dumps(PairedFiles(pairs, language="en")))
    found = {source[i].id: [caption.text for caption in source[i].captions] for i in range(len(source))}
    assert found == {
        "22.05.png": ["a red square", "un carré rouge"],
        "b.png": ["a circle, with a comma"],
        "more/b.png": ["<|endoftext|> as a word"],
    }
    assert {caption.language for caption in source.captions()} == {"en"}


def test_what_does_not_pair_is_named_with_how_many_there_are(pairs):
    (pairs / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b.png: has no b.txt beside it \(1 of 3 images have none\)"):
        PairedFiles(pairs)
    (pairs / "b.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"b.txt: has no line"):
        PairedFiles(pairs)
    (pairs / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"b.txt:1: is not UTF-8"):
        PairedFiles(pairs)
    (pairs / "b.txt").write_text("a circle")
    (pairs / "lost.txt").write_text("nothing to see")
    with pytest.raises(UserError, match=r"lost.txt has no image beside it"):
        PairedFiles(pairs)
    (pairs / "lost.txt").unlink()
    draw("red", "circle").save(pairs / "b.jpg")
    with pytest.raises(UserError, match=r"b.txt: belongs to b.jpg, b.png"):
        PairedFiles(pairs)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        PairedFiles(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        PairedFiles(tmp_path / "missing")
