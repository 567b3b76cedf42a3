"""Bytes to pixels: one decoder for every source and for the images a user hands to the command line."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmlm.core.errors import CorruptImage

MAX_MEGAPIXELS = 64
"""Images larger than this (in 2**20 pixels) are refused from their header: decoding one would take gigabytes."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that are tried. Never all of Pillow's: its EPS reader, for one, starts a program on the file."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise on damaged files."""


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode an encoded image to uint8[3, H, W] RGB.

    Transparency (alpha or palette) is laid on white, EXIF orientation is applied, 16-bit grey is scaled to 8 bits,
    CMYK and grey become RGB, and of an animation the first frame is taken. Raises :class:`CorruptImage` with
    ``name`` and the reason when the bytes are no image, are damaged, or hold more than ``MAX_MEGAPIXELS``.
    """
    if not data:
        raise CorruptImage(name, "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata; what cannot be decoded is raised below
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image_pixels(image, name)
        except CorruptImage:
            raise
        except Image.UnidentifiedImageError:
            reason = f"is not an image (tried {', '.join(FORMATS)})"
            raise CorruptImage(name, reason) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            reason = f"has more than {MAX_MEGAPIXELS} megapixels; make it smaller first"
            raise CorruptImage(name, reason) from None
        except _DECODER_ERRORS as error:
            raise CorruptImage(name, f"is damaged ({str(error) or type(error).__name__})") from error


def image_pixels(image: Image.Image, name: str) -> Tensor:
    """A Pillow image to uint8[3, H, W] RGB, as :func:`decode_image` does. Raises :class:`CorruptImage`."""
    _refuse_bomb(image, name)
    try:
        return _to_tensor(_to_rgb(ImageOps.exif_transpose(image), name))
    except _DECODER_ERRORS as error:  # Pillow reads a file's pixels only when they are asked for
        raise CorruptImage(name, f"is damaged ({str(error) or type(error).__name__})") from error


def read_image(path: Path) -> Tensor:
    """Decode an image file to uint8[3, H, W]; see :func:`decode_image`. A file that cannot be read is corrupt too."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorruptImage(str(path), "there is no such file") from None
    except IsADirectoryError:
        raise CorruptImage(str(path), "is a folder, not an image file") from None
    except OSError as error:
        raise CorruptImage(str(path), f"cannot be read ({error.strerror})") from error
    return decode_image(data, str(path))


def _refuse_bomb(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height == 0:
        raise CorruptImage(name, f"has {width} x {height} pixels")
    if width * height > MAX_MEGAPIXELS * 2**20:
        reason = f"has {width} x {height} pixels, more than {MAX_MEGAPIXELS} megapixels; make it smaller first"
        raise CorruptImage(name, reason)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        return _sixteen_bit_grey(image, name).convert("RGB")
    if image.mode == "F":
        raise CorruptImage(name, "has floating-point pixels without a known white; save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_grey(image: Image.Image, name: str) -> Image.Image:
    """Scale 0..65535 to 0..255 (Pillow's own conversion clips everything above 255 to white)."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise CorruptImage(name, "has 32-bit pixels without a known white; save it with 8 or 16 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
