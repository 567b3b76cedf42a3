"""What is handed to a model: every form of an image has the same pixels, one item or several, and what is refused."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.core.errors import UserError
from mmlm.data.images import read_image
from mmlm.pretrained.inputs import Given, check_text, pixels_of


def test_every_form_of_an_image_has_the_same_pixels(files, pictures):
    for file, picture in zip(files, pictures, strict=True):
        pixels = read_image(file)
        array = np.array(picture.convert("RGB"))
        read_only = array.copy()
        read_only.flags.writeable = False
        backwards = array[:, ::-1].copy()[:, ::-1]
        for form in (file, str(file), picture, picture.convert("RGBA"), array, read_only, backwards, pixels):
            found = pixels_of(form, "images")
            assert (found.dtype, found.is_contiguous()) == (torch.uint8, True)
            assert torch.equal(found, pixels)


def test_grey_is_three_equal_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = pixels_of(grey, "images")
    assert torch.equal(found, pixels_of(Image.fromarray(grey), "images"))
    assert found.tolist() == [grey.tolist()] * 3


def test_a_tensor_of_an_array_is_a_copy():
    array = np.zeros((2, 2, 3), dtype=np.uint8)
    found = pixels_of(array, "images")
    array[:] = 9
    assert found.max() == 0


@pytest.mark.parametrize(
    ("value", "single"),
    [
        ("a.png", True),
        (Path("a.png"), True),
        (np.zeros((2, 2, 3)), True),
        (torch.zeros(3, 2, 2), True),
        (Image.new("L", (2, 2)), True),
        (7, True),
        (b"xy", True),
        (["a.png"], False),
        (("a.png", Path("b.png")), False),
        ([], False),
    ],
)
def test_a_sequence_is_several_and_anything_else_is_one(value, single):
    given = Given.of("images", value)
    assert given.single == single
    assert list(given.items) == ([value] if single else list(value))
    assert given.named(3) == ("images" if single else "images.3")


class Terminal(io.StringIO):
    """A stderr that says it is one."""

    def isatty(self) -> bool:
        return True


def test_items_go_through_in_batches_in_order(capsys, monkeypatch):
    given = Given.of("images", list(range(7)))
    seen: list[tuple[int, list[int]]] = []

    def work(first, items):
        seen.append((first, list(items)))
        return [item * 10 for item in items]

    assert given.in_batches(3, work, "counting", progress=True) == [0, 10, 20, 30, 40, 50, 60]
    assert seen == [(0, [0, 1, 2]), (3, [3, 4, 5]), (6, [6])]
    assert capsys.readouterr() == ("", ""), "only a terminal gets a bar at once"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    given.in_batches(3, work, "counting", progress=False)
    assert terminal.getvalue() == ""
    given.in_batches(3, work, "counting", progress=True)
    assert "━" in terminal.getvalue(), "a bar, whose text is drawn some times a second"
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="batch_size: 0 must be at least 1"):
        given.in_batches(0, work, "counting", progress=False)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (7, "x: a int is no image; give a path, a Pillow image, an array"),
        (None, "x: a NoneType is no image"),
        (b"\x89PNG", "x: a bytes is no image"),
        ("gone.png", "x: gone.png: there is no such file"),
        (Path("line\nbreak.png"), r"x: line\nbreak.png: there is no such file"),
        ("null\0.png", r"x: null\x00.png is no path"),
        (".", "x: .: is a folder, not an image file"),
        (Image.new("RGB", (0, 3)), "x: has 0 x 3 pixels"),
        (np.zeros((4, 4, 3)), "x: a float64[4, 4, 3] array is no image; give uint8[H, W, 3], RGB from 0 to 255, or"),
        (np.zeros((3, 4, 4), np.uint8), "x: a uint8[3, 4, 4] array is no image"),
        (np.zeros((4, 4, 4), np.uint8), "x: a uint8[4, 4, 4] array is no image"),
        (np.zeros((0, 4), np.uint8), "x: a uint8[0, 4] array is no image"),
        (np.zeros((2, 4, 4, 3), np.uint8), "several images are a list of them: list(...)"),
        (torch.zeros(3, 4, 4), "x: a float32[3, 4, 4] tensor is no image; give uint8[3, H, W], RGB from 0 to 255"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "x: a uint8[4, 4, 3] tensor is no image"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), "x: a uint8[3, 0, 4] tensor is no image"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "several images are a list of them: list(...)"),
    ],
)
def test_what_is_no_image_is_one_line_that_names_the_item(image, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        pixels_of(image, "x")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_picture_that_breaks_off_is_refused(files):
    file = files[0]
    file.write_bytes(file.read_bytes()[:60])
    with Image.open(file) as broken, pytest.raises(UserError, match=r"^x: is damaged"):
        pixels_of(broken, "x")
    with pytest.raises(UserError, match=rf"^x: {file}: is damaged"):
        pixels_of(file, "x")


def test_a_text_is_a_str():
    assert check_text("a cat", "texts.1") == "a cat"
    with pytest.raises(UserError, match=r"^texts\.1: a int is no text; give a str$"):
        check_text(7, "texts.1")
