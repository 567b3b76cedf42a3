"""Crops are inside of their image, have the pixels of open_clip's transform, and evaluation is its centre square."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as peer

from mmlm.core.errors import ArgumentError
from mmlm.data import crop as crop_file
from mmlm.data.crop import Crop, resized
from mmlm.data.images import decode_image
from mmlm.data.jpeg import HAS_DECODER
from tests.data.test_jpeg import encoded, photo

GREY_LEVELS = 1
"""How far a pixel may be from Pillow's: both add up rounded weights, of different precision."""


def draws(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, Crop.num_uniforms, generator=generator, dtype=torch.float64)


def as_image(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def apart(ours: torch.Tensor, theirs: Image.Image) -> int:
    return int((ours.int() - as_image(theirs).int()).abs().max())


def test_a_box_has_its_area_and_ratio_and_lies_inside():
    crop = Crop(8, scale=(0.3, 0.8), ratio=(0.5, 2.0))
    for height, width in ((480, 640), (500, 500), (300, 200)):
        for row in draws(200).tolist():
            top, left, high, wide = crop.box(height, width, row[:4])
            assert 0 <= top <= height - high
            assert 0 <= left <= width - wide
            assert 0.29 < high * wide / (height * width) < 0.81
            assert 0.49 < wide / high < 2.01


def test_an_image_that_is_too_long_for_any_ratio_gives_all_of_its_short_side():
    crop = Crop(8, scale=(0.9, 0.9))
    for row in draws(20).tolist():
        assert crop.box(10, 1000, row[:4])[2:] == (10, 900)
        assert crop.box(1000, 10, row[:4])[2:] == (900, 10)
    assert crop.box(1, 1, [0.99] * 4) == (0, 0, 1, 1)


def test_places_are_uniform():
    crop = Crop(8, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    places = torch.tensor([crop.box(20, 20, row[:4])[:2] for row in draws(2000).tolist()])
    assert places.min() == 0
    assert places.max() == 10
    assert (places.double().mean(0) - 5).abs().max() < 4 * math.sqrt(10 / 2000)


@pytest.mark.parametrize("size", [16, 40])
def test_the_pixels_are_those_of_open_clips_training_transform(size):
    picture = photo()
    crop = Crop(size)
    uniforms = draws(4)
    ours = crop([as_image(picture)] * 4, uniforms)
    for row, view in zip(uniforms.tolist(), ours, strict=True):
        box = crop.box(picture.height, picture.width, row[:4])
        theirs = peer.resized_crop(picture, *box, (size, size), InterpolationMode.BICUBIC)
        assert apart(view, theirs) <= GREY_LEVELS
        assert torch.equal(view, resized(as_image(picture), box, size))


@pytest.mark.parametrize("shape", [(61, 90), (90, 61), (40, 40), (20, 33)])
def test_evaluation_is_open_clips(shape):
    picture = photo(*shape)
    theirs = peer.center_crop(peer.resize(picture, 32, InterpolationMode.BICUBIC), [32, 32])
    assert apart(Crop(32)([as_image(picture)], None)[0], theirs) <= GREY_LEVELS


def test_flipped_views_are_mirrored():
    picture, uniforms = as_image(photo()), draws(3)
    plain, mirrored = Crop(16)([picture] * 3, uniforms), Crop(16, flip=1.0)([picture] * 3, uniforms)
    assert torch.equal(mirrored, plain.flip(3))


def test_the_order_in_memory_moves_no_pixel():
    packed = as_image(photo())
    for given in (None, draws(1)):
        assert torch.equal(Crop(16)([packed], given), Crop(16)([packed.contiguous()], given))


@pytest.mark.skipif(not HAS_DECODER, reason="simplejpeg is not installed")
def test_scaled_decoding_shows_the_same_view():
    data = encoded(photo(240, 320), quality=95)
    crop, uniforms = Crop(48, scaled=True), draws(2)
    small = decode_image(data, "x", crop.at_least)
    assert small.shape[1:] == (60, 80)
    for given in (None, uniforms):
        views = [crop([image] * 2, given).float() for image in (small, decode_image(data, "x"))]
        assert (views[0] - views[1]).abs().mean() < 4


def test_impossible_settings(monkeypatch):
    for name, value in (("scale", (0.0, 1.0)), ("scale", (0.5, 1.1)), ("ratio", (2.0, 1.0)), ("flip", 2.0)):
        with pytest.raises(ArgumentError, match=name):
            Crop(16, **{name: value})
    monkeypatch.setattr(crop_file, "HAS_DECODER", False)
    with pytest.raises(ArgumentError, match="scaled: true needs the package simplejpeg"):
        Crop(16, scaled=True)
