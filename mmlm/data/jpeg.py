"""JPEG files decoded by libjpeg-turbo directly, with the pixels of Pillow, which has the same library inside of it.

That takes less time than by way of Pillow, and other threads go on meanwhile. It may also decode at a fraction of the
size: of each 8x8 block of cosine coefficients only the lowest are transformed. Those are other pixels than those of the
whole image made smaller, so it is a setting (see ``CropSettings.scaled``) and nothing that happens by itself.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

HAS_DECODER = simplejpeg is not None
"""Whether the optional package simplejpeg is there. Without it Pillow decodes all files, always whole."""


def jpeg_pixels(data: bytes, header: Image.Image, at_least: int | None = None) -> NDArray[np.uint8] | None:
    """uint8[H, W, 3] RGB of a JPEG file; None for all that Pillow shall look at.

    That is any other format, grey and CMYK, files that EXIF turns, several pictures in one file, and anything
    at which libjpeg-turbo has a remark: what a damaged file is, only Pillow decides. A region alone cannot be decoded.

    Args:
        data: the file.
        header: the file as Pillow has opened it, of which no pixel is decoded yet. Its size is fine.
        at_least: the image may be decoded at the smallest of libjpeg-turbo's fractions (in eighths) that leaves both
            sides this number of pixels; None decodes it whole.
    """
    if simplejpeg is None or header.format != "JPEG" or header.mode != "RGB":
        return None
    try:
        if header.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
    except Exception:  # damaged EXIF data; Pillow's readers raise anything
        return None
    smallest = 0 if at_least is None or min(header.size) < at_least else at_least
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=smallest, min_width=smallest, strict=True
        )
    except ValueError:
        return None
    # Pillow goes by the size of the header: a file that says two sizes is its matter too.
    return pixels if smallest or pixels.shape[:2] == header.size[::-1] else None
