"""Decodes images: one decoder for every source and for the images that a user gives on the command line.

The bytes are not trusted: a data set from the web has damaged files, files of other formats, and files that are made to
harm. All of these raise CorruptImage, which a loader counts and names instead of ending the run.
"""

import io
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmlm.core.errors import CorruptImage
from mmlm.data.jpeg import jpeg_pixels
from mmlm.data.stored import Url, read_whole

MAX_MEGAPIXELS = 64
"""An image of more than this number of 2**20 pixels is refused by its header: decoding it would take gigabytes."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
"""The formats that are tried, not all that Pillow knows: its EPS reader, for one, starts a program on the file."""

_PNG = b"\x89PNG\r\n\x1a\n"
_REMARKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""The chunks of a PNG that hold texts, and its colour profile."""

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
"""The exceptions that Pillow's readers raise on damaged files."""


def decode_image(data: bytes, name: str, at_least: int | None = None) -> Tensor:
    """Decodes an encoded image to uint8[3, H, W] RGB, whose memory may be in the order H, W, 3.

    Transparency (alpha or palette) is laid on white, EXIF orientation is applied, 16-bit grey is scaled to 8 bits, CMYK
    and grey become RGB, and of an animation the first frame is taken. Raises :class:`CorruptImage` with ``name`` and
    the reason if the bytes are no image, are damaged, or have more than ``MAX_MEGAPIXELS``. With ``at_least`` a JPEG
    file may come smaller, though with that number of pixels a side (see ``jpeg_pixels``).
    """
    if not data:
        raise CorruptImage(name, "the file is empty")
    try:
        return _decode(data, name, at_least)
    except CorruptImage:
        # Pillow refuses a PNG whole if one of its texts is long, as those of programs that write a scene or a prompt
        # into their pictures are.
        bare = _without_remarks(data)
        if len(bare) == len(data):
            raise
        with suppress(CorruptImage):
            return _decode(bare, name)
        raise


def _decode(data: bytes, name: str, at_least: int | None = None) -> Tensor:
    """See ``decode_image``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata; what cannot be decoded is raised below
        # Pillow warns at its own limit of pixels and raises at twice the limit; both are a refusal here.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _refuse_bomb(image, name)
                pixels = jpeg_pixels(data, image, at_least)
                return image_pixels(image, name) if pixels is None else torch.from_numpy(pixels).permute(2, 0, 1)
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


def _without_remarks(data: bytes) -> bytes:
    """The bytes of a PNG without its texts and colour profile; those of any other image as they are."""
    if not data.startswith(_PNG):
        return data
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length  # length, kind, content, checksum
        if kind not in _REMARKS:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def image_pixels(image: Image.Image, name: str) -> Tensor:
    """uint8[3, H, W] RGB of a Pillow image, as :func:`decode_image` makes it. Raises :class:`CorruptImage`."""
    # The size is in the header: check it before any pixel is decoded.
    _refuse_bomb(image, name)
    try:
        return _to_tensor(_to_rgb(_upright(image), name))
    except _DECODER_ERRORS as error:  # Pillow reads a file's pixels only when they are asked for
        raise CorruptImage(name, f"is damaged ({str(error) or type(error).__name__})") from error


def read_image(path: Path, at_least: int | None = None) -> Tensor:
    """Decodes an image file to uint8[3, H, W]; see :func:`decode_image`. A file that cannot be read is corrupt too."""
    return decode_image(read_encoded(path), str(Path(path)), at_least)


def read_encoded(path: Path | Url) -> bytes:
    """The bytes of an image file. Raises :class:`CorruptImage` if it cannot be read."""
    try:
        return read_whole(path)
    except FileNotFoundError:
        raise CorruptImage(str(path), "there is no such file") from None
    except IsADirectoryError:
        raise CorruptImage(str(path), "is a folder, not an image file") from None
    except OSError as error:
        raise CorruptImage(str(path), f"cannot be read ({error.strerror})") from error


def _refuse_bomb(image: Image.Image, name: str) -> None:
    """Raises CorruptImage for an image without pixels or with too many, such as a decompression bomb."""
    width, height = image.size
    if width * height == 0:
        raise CorruptImage(name, f"has {width} x {height} pixels")
    if width * height > MAX_MEGAPIXELS * 2**20:
        reason = f"has {width} x {height} pixels, more than {MAX_MEGAPIXELS} megapixels; make it smaller first"
        raise CorruptImage(name, reason)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data say; as it is if those are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image in mode RGB, whatever its own mode. CorruptImage if the brightness of its white is unknown."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # I;16 in either byte order, or I of 32 bits
        return _sixteen_bit_grey(image, name).convert("RGB")
    if image.mode == "F":
        raise CorruptImage(name, "has floating-point pixels without a known white; save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_grey(image: Image.Image, name: str) -> Image.Image:
    """Scales 0..65535 to 0..255; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise CorruptImage(name, "has 32-bit pixels without a known white; save it with 8 or 16 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_tensor(image: Image.Image) -> Tensor:
    """uint8[3, H, W] of an RGB image; np.array copies, as a tensor must not share memory that Pillow owns."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
