"""images: every kind of file a user has becomes the RGB that a person sees, or one clear line."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.core.errors import CorruptImage
from mmlm.data.images import MAX_MEGAPIXELS, decode_image, read_image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_rgb(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG of any claimed size, in 50 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("JPEG2000", {})],
)
def test_lossless_rgb_comes_back_exactly(format, options):
    pixels = random_rgb()
    image = decode_image(encoded(Image.fromarray(pixels), format, **options), "x")
    assert image.dtype == torch.uint8
    assert image.shape == (3, 6, 9)
    assert image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_avif():
    pixels = random_rgb()
    image = decode_image(encoded(Image.fromarray(pixels), "AVIF", quality=100, subsampling="4:4:4"), "x")
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - pixels).max() <= 3


def test_jpeg():
    data = encoded(Image.new("RGB", (16, 8), (200, 30, 60)), "JPEG", quality=95)
    image = decode_image(data, "x")
    assert image.shape == (3, 8, 16)
    assert (image[:, 4, 8].int() - torch.tensor([200, 30, 60])).abs().max() <= 3


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(format):
    pixels = np.zeros((2, 4, 4), dtype=np.uint8)
    pixels[:, :2] = (255, 0, 0, 128)
    pixels[:, 2:] = (0, 0, 0, 0)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    image = decode_image(encoded(Image.fromarray(pixels, "RGBA"), format, **options), "x")
    assert image[:, 0, 0].tolist() == [255, 127, 127]
    assert image[:, 0, 3].tolist() == [255, 255, 255]


def test_palette_and_its_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode_image(encoded(palette), "x")[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    for transparency in (1, bytes([255, 0])):
        data = encoded(palette, transparency=transparency)
        assert decode_image(data, "x")[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    assert decode_image(encoded(palette, "GIF", transparency=1), "x")[:, 0, 1].tolist() == [255, 255, 255]


def test_transparent_colour_of_rgb():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    decoded = decode_image(encoded(image, transparency=(1, 2, 3)), "x")
    assert decoded[:, 0].T.tolist() == [[255, 255, 255], [9, 9, 9]]


def test_grey_grey_alpha_and_one_bit():
    assert decode_image(encoded(Image.new("L", (1, 1), 77)), "x").flatten().tolist() == [77, 77, 77]
    assert decode_image(encoded(Image.new("LA", (1, 1), (0, 51))), "x").flatten().tolist() == [204, 204, 204]
    assert decode_image(encoded(Image.new("1", (1, 1), 1)), "x").flatten().tolist() == [255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values), format), "x")
    assert image[:, 0].T.tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_cmyk():
    image = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), "x")
    red, green, blue = image[:, 4, 4].tolist()
    assert red > 250
    assert green < 5
    assert blue < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    pixels = random_rgb(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(Image.fromarray(pixels), "PNG", exif=exif), "x").permute(1, 2, 0).numpy()
    # What each EXIF value says of the stored rows and columns.
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }
    assert np.array_equal(image, upright[orientation])


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, "x")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_truncated_files_are_corrupt(format, kept):
    data = encoded(Image.fromarray(random_rgb(64, 64)), format)
    with pytest.raises(CorruptImage, match=r"^cat\.png: is (damaged|not an image)"):
        decode_image(data[: int(len(data) * kept)], "cat.png")


def test_random_damage_is_corrupt_or_decoded_and_never_another_error():
    generator = np.random.default_rng(1)
    messages = []
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = np.frombuffer(encoded(Image.fromarray(random_rgb(16, 16)), format), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[generator.integers(0, len(data), 4)] = generator.integers(0, 256, 4)
            try:
                assert decode_image(damaged.tobytes(), "x").dtype == torch.uint8
            except CorruptImage as error:
                messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("data", [b"<html>no such image</html>", b"\0" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_not_an_image(data):
    with pytest.raises(CorruptImage, match=r"^page: is not an image \(tried PNG, JPEG, "):
        decode_image(data, "page")


def test_empty():
    with pytest.raises(CorruptImage, match=r"^x: the file is empty"):
        decode_image(b"", "x")


@pytest.mark.parametrize("side", [8193, 10_000, 20_000, 65_000])
def test_bombs_are_refused_from_the_header(side):
    with pytest.raises(CorruptImage, match=f"more than {MAX_MEGAPIXELS} megapixels"):
        decode_image(png_header(side, side), "bomb")


def test_float_and_32_bit_pixels_are_refused_with_the_fix():
    with pytest.raises(CorruptImage, match="save it with 8 or 16 bits"):
        decode_image(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"), "x")
    with pytest.raises(CorruptImage, match="save it with 8 or 16 bits"):
        decode_image(encoded(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)), "TIFF"), "x")


def test_read_image(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), "white")))
    assert read_image(path).shape == (3, 2, 3)
    with pytest.raises(CorruptImage, match=r"b\.png: there is no such file"):
        read_image(tmp_path / "b.png")
    with pytest.raises(CorruptImage, match="is a folder"):
        read_image(tmp_path)


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(CorruptImage("a.png", "is damaged")))
    assert (error.name, error.reason, str(error)) == ("a.png", "is damaged", "a.png: is damaged")


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk in front of its pixels."""
    place = png.index(b"IDAT") - 4
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return png[:place] + struct.pack(">I", len(content)) + kind + content + checksum + png[place:]


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"zTXt", b"parameters\0\0"), (b"iTXt", b"workflow\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
)
def test_a_long_text_or_profile_costs_no_image(kind, head):
    """Programs that render or generate write whole scenes into their pictures, packed into few bytes."""
    plain = encoded(Image.fromarray(random_rgb()))
    remarked = with_chunk(plain, kind, head + zlib.compress(b"prompt " * 300_000))
    assert torch.equal(decode_image(remarked, "x"), decode_image(plain, "x"))
    cut = remarked[: remarked.index(b"IDAT") + 10]
    with pytest.raises(CorruptImage, match="is damaged"):
        decode_image(cut, "x")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_costs_no_image(format):
    image = Image.fromarray(random_rgb())
    odd = encoded(image, format, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40)
    assert torch.equal(decode_image(odd, "x"), decode_image(encoded(image, format), "x"))
