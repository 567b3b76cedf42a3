"""What augmentation does to a batch: the map of each image from view to picture, its colours, and its pixels."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmlm.data.augment_settings import AugmentSettings

_NET = 4
"""Number of control points of the elastic warp along each side."""

COLUMNS = (
    "scale",
    "stretch",
    "rotate",
    "translate_x",
    "translate_y",
    "shear",
    "flip",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grayscale",
    "sharpness",
    "erase",
    "erase_area",
    "erase_shape",
    "erase_x",
    "erase_y",
    "outline",
    "outline_strength",
    *(f"elastic_{axis}_{point}" for axis in "xy" for point in range(_NET**2)),
)
"""The parameter that each column of ``uniforms`` decides. New ones are appended, so that old runs keep their images."""

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grey of a pixel (ITU-R BT.601, as in torchvision and Pillow)."""

Draws = dict[str, NDArray[np.float64]]
"""float64[B] for each column, by name. The parameters are computed in NumPy: torch starts threads for a hundred
exponentials, which costs more than the whole transform as soon as another process uses the same cores."""


def to_float32(values: NDArray[np.float64]) -> Tensor:
    """The same numbers as a tensor, on the CPU."""
    return torch.from_numpy(values.astype(np.float32))


def _either_way(draw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform in [-1, 1) from uniform in [0, 1)."""
    return 2 * draw - 1


def _factor(draw: NDArray[np.float64], change: float) -> NDArray[np.float64]:
    """Uniform in [1 - ``change``, 1 + ``change``) from uniform in [0, 1)."""
    return 1 + change * _either_way(draw)


def elastic(settings: AugmentSettings, draws: Draws, size: int) -> Tensor:
    """float32[B, S, S, 2]: the shift of each point of the view in x and y, in half sides."""
    axes = [np.stack([draws[f"elastic_{axis}_{point}"] for point in range(_NET**2)], axis=1) for axis in "xy"]
    net = to_float32(2 * settings.elastic * _either_way(np.stack(axes, axis=1))).view(-1, 2, _NET, _NET)
    return F.interpolate(net, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def inverse_affine(settings: AugmentSettings, draws: Draws) -> NDArray[np.float64]:
    """float64[B, 2, 3]: maps a point of the view, in [-1, 1]^2, to the point of the picture that is seen there.

    The picture is mirrored and stretched, sheared, rotated, then shifted; the result is the inverse of that map.
    """
    low, high = (math.log(bound) for bound in settings.scale)
    size = np.exp(low + (high - low) * draws["scale"])
    stretch = np.exp(0.5 * math.log(settings.stretch) * _either_way(draws["stretch"]))
    width, height = size * stretch, size / stretch
    width = np.where(draws["flip"] < settings.flip, -width, width)
    angle = np.deg2rad(settings.rotate * _either_way(draws["rotate"]))
    shear = np.tan(np.deg2rad(settings.shear * _either_way(draws["shear"])))
    shift_x = 2 * settings.translate * _either_way(draws["translate_x"])
    shift_y = 2 * settings.translate * _either_way(draws["translate_y"])

    cos, sin = np.cos(angle), np.sin(angle)
    # rotation @ [[1, shear], [0, 1]] @ diag(width, height), determinant width * height
    a, b = cos * width, (cos * shear - sin) * height
    c, d = sin * width, (sin * shear + cos) * height
    determinant = width * height
    linear = np.stack([d, -b, -c, a], 1).reshape(-1, 2, 2) / determinant[:, None, None]
    shift = np.stack([shift_x, shift_y], 1)[:, None, :]
    return np.concatenate([linear, -(linear * shift).sum(2, keepdims=True)], axis=2)


_IDENTITY = np.eye(3)
_GREY = np.broadcast_to(_LUMA, (3, 3))
_CHROMA = _IDENTITY - _GREY
"""float64[3, 3]: the projection of RGB on its chroma plane."""

_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_QUARTER_TURN = np.linalg.inv(_YIQ) @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _YIQ
"""float64[3, 3]: a quarter turn of the chroma plane, from red towards green as the hue of HSV."""


def vary_colour(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Brightness, contrast, saturation, hue, then grey, as one affine map of RGB per image.

    Differs from torchvision's ColorJitter in a fixed order, a hue rotation that is linear (in YIQ, which keeps the
    grey) instead of a walk through HSV, and one clamp at the end.
    """
    brightness = _factor(draws["brightness"], settings.brightness)
    contrast = _factor(draws["contrast"], settings.contrast)
    saturation = _factor(draws["saturation"], settings.saturation)[:, None, None]
    angle = (2 * math.pi * settings.hue * _either_way(draws["hue"]))[:, None, None]
    rotation = _IDENTITY + (np.cos(angle) - 1) * _CHROMA + np.sin(angle) * _QUARTER_TURN
    colour = rotation @ (saturation * _IDENTITY + (1 - saturation) * _GREY)
    colour = np.where((draws["grayscale"] < settings.grayscale)[:, None, None], _GREY, colour)
    # All of the above keep a grey pixel grey, so contrast adds one number per image: its share of the mean grey.
    offset = to_float32((1 - contrast) * brightness * _mean_grey(pixels))[:, None, None, None]
    matrix = to_float32(colour * (contrast * brightness)[:, None, None])[:, :, :, None, None]
    out = pixels[:, 0:1] * matrix[:, :, 0] + offset
    return out.addcmul_(pixels[:, 1:2], matrix[:, :, 1]).addcmul_(pixels[:, 2:3], matrix[:, :, 2])


def _mean_grey(pixels: Tensor) -> NDArray[np.float64]:
    """float64[B]: the mean grey of each image. Sums integers, because a float sum depends on threads and batch size."""
    sums = pixels.round().to(torch.int32).sum(dim=(2, 3), dtype=torch.int64)
    return (sums.numpy() * _LUMA).sum(1) / (pixels.shape[2] * pixels.shape[3])


def outline(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Darkens edges by the spread, largest minus smallest grey, of each 3x3 neighbourhood."""
    grey = pixels.mean(dim=1, keepdim=True)
    spread = _around(grey, torch.maximum) + _around(-grey, torch.maximum)
    strength = np.where(draws["outline"] < settings.outline, 2 * draws["outline_strength"], 0.0)
    return (pixels - spread * to_float32(strength)[:, None, None, None]).clamp_(min=0)


def _around(pixels: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Each 3x3 neighbourhood combined into one value, along columns, then rows; only pixels of the image take part.

    On a CPU 20 times as fast as ``F.max_pool2d``, which does not vectorise for images this small.
    """
    for dim in (2, 3):
        size = pixels.shape[dim] - 1
        first, last = pixels.narrow(dim, 0, size), pixels.narrow(dim, 1, size)
        pixels = pixels.clone()
        for place, beside in ((pixels.narrow(dim, 0, size), last), (pixels.narrow(dim, 1, size), first)):
            place.copy_(combine(place, beside))
    return pixels


def vary_sharpness(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Moves each image away from or towards its 3x3 mean."""
    # Divided by the number of neighbours, which is smaller at the edges.
    blurred = _around(pixels, torch.add) / _around(torch.ones_like(pixels[:1, :1]), torch.add)
    factor = to_float32(_factor(draws["sharpness"], settings.sharpness))[:, None, None, None]
    return torch.lerp(blurred, pixels, factor)


def erase(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Fills one box of each chosen image; the box's sides differ by a factor of at most 3."""
    low, high = settings.erase_area
    half = 0.5 * np.sqrt(low + (high - low) * draws["erase_area"])
    shape = np.exp(0.5 * math.log(3) * _either_way(draws["erase_shape"]))
    size = pixels.shape[-1]
    centres = (np.arange(size) + 0.5) / size
    inside_x = np.abs(centres[None, :] - draws["erase_x"][:, None]) < (half * shape)[:, None]
    inside_y = np.abs(centres[None, :] - draws["erase_y"][:, None]) < (half / shape)[:, None]
    chosen = draws["erase"] < settings.erase
    box = inside_y[:, :, None] & inside_x[:, None, :] & chosen[:, None, None]
    return pixels.masked_fill(torch.from_numpy(box)[:, None], settings.fill)
