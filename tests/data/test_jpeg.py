"""JPEG files have the pixels of Pillow, whoever decodes them, and what is odd about one is Pillow's to decide."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.core.errors import CorruptImage
from mmlm.data import jpeg
from mmlm.data.images import decode_image, image_pixels

needs_decoder = pytest.mark.skipif(not jpeg.HAS_DECODER, reason="simplejpeg is not installed")


def photo(height: int = 61, width: int = 90) -> Image.Image:
    """Smooth colours with some noise, as photos have."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + generator.integers(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), exif=exif)


KINDS = {
    "plain": encoded(photo()),
    "4:4:4": encoded(photo(), subsampling=0, quality=95),
    "4:2:2": encoded(photo(), subsampling=1),
    "progressive": encoded(photo(), progressive=True),
    "restart markers": encoded(photo(), restart_marker_blocks=2),
    "RGB as it is": encoded(photo(), keep_rgb=True),
    "one pixel": encoded(photo(1, 1)),
    "odd sides": encoded(photo(17, 3)),
    "upright by EXIF": turned(1),
    "turned by EXIF": turned(6),
    "mirrored by EXIF": turned(2),
    "damaged EXIF": encoded(photo(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "grey": encoded(photo().convert("L")),
    "CMYK": encoded(photo().convert("CMYK")),
    "bytes behind the end": encoded(photo()) + b"\0" * 100,
}
BY_PILLOW = {"turned by EXIF", "mirrored by EXIF", "grey", "CMYK"}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_pillow(kind):
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        expected = image_pixels(image, kind)
    assert torch.equal(decode_image(KINDS[kind], kind), expected)


@needs_decoder
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_to_pillow(kind):
    with Image.open(io.BytesIO(KINDS[kind])) as header:
        left = jpeg.jpeg_pixels(KINDS[kind], header) is None
    assert left == (kind in BY_PILLOW) or kind in ("damaged EXIF", "bytes behind the end")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_corrupt(share):
    data = KINDS["plain"]
    for at_least in (None, 16):
        with pytest.raises(CorruptImage, match="damaged"):
            decode_image(data[: int(share * len(data))], "x", at_least)


def test_without_the_package_pillow_decodes(monkeypatch):
    expected = decode_image(KINDS["plain"], "x", 16)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    whole = decode_image(KINDS["plain"], "x", 16)
    assert whole.shape == (3, 61, 90)
    assert torch.equal(whole, decode_image(KINDS["plain"], "x"))
    assert expected.shape[1] <= 61


@needs_decoder
def test_a_fraction_of_the_size_keeps_the_pixels_that_are_asked_for():
    data = encoded(photo(96, 128), quality=95)
    whole = decode_image(data, "x").float()
    for at_least, shape in ((97, (96, 128)), (96, (96, 128)), (48, (48, 64)), (40, (48, 64)), (12, (12, 16))):
        small = decode_image(data, "x", at_least)
        assert small.shape[1:] == shape
        # What is left of a block is near to its mean: the transform of the low coefficients alone.
        mean = torch.nn.functional.adaptive_avg_pool2d(whole, shape)
        assert (small.float() - mean).abs().mean() < 3, at_least


@pytest.mark.parametrize("kind", sorted(BY_PILLOW))
def test_what_is_left_to_pillow_is_whole_at_any_size(kind):
    assert torch.equal(decode_image(KINDS[kind], kind, 8), decode_image(KINDS[kind], kind))
