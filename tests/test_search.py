"""``python -m mmlm.search``: the nearest images of a folder, the index that is kept, the page, and what it refuses."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from mmlm import export, search
from mmlm.data.images import FORMATS, read_image
from mmlm.pretrained import from_pretrained
from mmlm.pretrained.image_index import default_folder
from tests.conftest import COLOURS, draw


def rows_of(out: str) -> list[tuple[str, float]]:
    """The names and similarities of the printed table."""
    found = re.findall(r"^ +\d+  +(-?[\d.]+)  (.*)$", out, flags=re.MULTILINE)
    return [(name, float(value)) for value, name in found]


def page_of(out: str) -> Path:
    return Path(out.splitlines()[-1].removeprefix("page: "))


def test_texts_and_images_find_their_nearest_images(trained, command, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, exported = trained("evaluators=retrieval"), tmp_path / "exported"
    command(export, f"run={folder}", f"to={exported}")
    photos = tmp_path / "photos <b>"
    shutil.copytree(shapes, photos)
    (photos / "broken.png").write_text("no image")
    before = sorted(photos.iterdir())
    first = command(search, f"run={folder}", f"images={photos}", "query=a red square", "top=3")
    assert first.status == 0
    assert first.err.splitlines() == [
        f"mmlm: left out: broken.png: is not an image (tried {', '.join(FORMATS)})",
        "mmlm: 8 images, 8 of them embedded now",
    ]
    model = from_pretrained(exported)
    names = [path.name for path in before if path.suffix == ".png" and path.name != "broken.png"]
    similar = model.encode_image([read_image(photos / n) for n in names]) @ model.encode_text(["a red square"])[0]
    expected = sorted(zip(names, similar.tolist(), strict=True), key=lambda pair: -pair[1])[:3]
    assert [name for name, _ in rows_of(first.out)] == [name for name, _ in expected]
    assert [value for _, value in rows_of(first.out)] == pytest.approx([value for _, value in expected], abs=6e-4)
    assert sorted(photos.iterdir()) == before, "nothing is written beside the images"
    page = page_of(first.out)
    assert page.parent == default_folder(photos)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/webp;base64,") == 3
    assert '<h1 dir="auto">a red square</h1>' in text
    assert "among 8 images in photos &lt;b&gt;" in text
    assert "<b>" not in text
    assert str(tmp_path) not in text, "the page names no folder of the machine"
    assert "default-src 'none'" in text
    # By an image, and by the exported model: the index is there already.
    query = photos / "blue_circle.png"
    second = command(search, f"run={exported}", f"images={photos}", f"query={query}", "top=100")
    assert second.err.splitlines()[-1] == "mmlm: 8 images, 0 of them embedded now"
    assert rows_of(second.out)[0] == ("blue_circle.png", 1.0)
    assert len(rows_of(second.out)) == 8
    assert page_of(second.out).read_text(encoding="utf-8").count("data:image/webp;base64,") == 9
    # An image that is changed in place is embedded again.
    draw("yellow", "circle", 20).save(photos / "red_square.png")
    third = command(search, f"run={exported}", f"images={photos}", f"query={query}", f"out={tmp_path / 'kept'}")
    assert page_of(third.out) == tmp_path / "kept" / "search.html"
    fourth = command(search, f"run={exported}", f"images={photos}", f"query={query}")
    assert fourth.err.splitlines()[-1] == "mmlm: 8 images, 1 of them embedded now"
    assert rows_of(third.out) == rows_of(fourth.out)


def test_a_model_is_known_by_its_weights_and_its_settings(trained, command, tmp_path):
    one = from_pretrained(trained())
    digest = one.digest()
    with torch.no_grad():
        next(iter(one.parameters())).view(-1)[0] += 1e-3
    assert one.digest() != digest
    with torch.no_grad():
        next(iter(one.parameters())).view(-1)[0] -= 1e-3
    one.config.parts["transform"] = one.config.parts["transform"] | {"trim": 0.5}
    assert one.digest() != digest


def test_mistakes_of_search(trained, command, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = trained()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("")
    for arguments, message in (
        ((f"images={shapes}", "query=x", "top=0"), "top: 0 must be at least 1"),
        ((f"images={shapes}", "query= "), "query: is blank"),
        ((f"images={shapes}", "query=gone.png"), "query: gone.png looks like the path of an image, and there is no"),
        ((f"images={shapes}",), "query: required, and not set"),
        (("images=nowhere", "query=x"), "images: nowhere is no folder"),
        ((f"images={tmp_path / 'empty'}", "query=x"), "holds no image (.png, "),
        ((f"images={shapes}", "query=x", "language=xx"), "a caption's language is 'xx'"),
        ((f"images={shapes}", "query=x", f"out={tmp_path / 'a_file'}"), "a_file cannot be written"),
        (("run=nowhere", f"images={shapes}", "query=x"), "nowhere is no run folder"),
    ):
        outcome = command(search, f"run={folder}", *arguments)
        assert outcome.status == 2
        assert message in outcome.err.splitlines()[-1]


def test_names_of_files_are_shown_whatever_they_hold(trained, command, tmp_path):
    folder, odd = trained(), tmp_path / "odd"
    odd.mkdir()
    names = ["line\nbreak.png", "näher [1].png", "\udcff.png", "<script>.png"]
    for colour, name in zip(COLOURS, names, strict=True):
        draw(colour, "square").save(odd / name)
    outcome = command(search, f"run={folder}", f"images={odd}", "query=a red square", f"out={tmp_path / 'out'}")
    assert sorted(name for name, _ in rows_of(outcome.out)) == sorted(
        ["line\\nbreak.png", "näher [1].png", "\\udcff.png", "<script>.png"]
    )
    assert "<script>" not in page_of(outcome.out).read_text(encoding="utf-8")
