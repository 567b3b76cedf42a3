"""Images of any size to one square size, with augmentation: a few vectorised passes over the whole batch.

Geometry is one affine `grid_sample`, colour is one affine map of RGB per image. All randomness is an argument
(``uniforms``), so that an example's augmentation depends on (seed, epoch, example) and on nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError


@dataclass(frozen=True)
class AugmentSettings:
    """The augmentation of training images. With the defaults the result is exactly the evaluation image."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest size of the picture relative to the evaluation view, log-uniform; 2 shows its middle half,
    0.5 shows all of it inside a border. Below 0.5 fine lines alias."""
    stretch: float = 1.0
    """Largest ratio (>= 1) by which width and height are stretched against each other, log-uniform, either way."""
    rotate: float = 0.0
    """Largest rotation, degrees, uniform, either way."""
    translate: float = 0.0
    """Largest shift along each axis, fraction of the view's side, uniform, either way."""
    shear: float = 0.0
    """Largest horizontal shear, degrees (below 90), uniform, either way."""
    flip: float = 0.0
    """Probability of a left-right mirror image."""
    elastic: float = 0.0
    """Largest shift of a smooth random warp along each axis, fraction of the view's side (elastic distortion, Simard
    et al., ICDAR 2003; ours bends a 4x4 net of control points, uniform, either way)."""
    fill: int = 255
    """Grey level of what lies outside of the picture and of erased boxes, 0 (black) to 255 (white)."""
    brightness: float = 0.0
    """Largest relative change of brightness: the factor is uniform in [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Largest relative change of the distance to the image's mean grey: factor uniform in [1 - x, 1 + x]."""
    saturation: float = 0.0
    """Largest relative change of the distance to each pixel's own grey: factor uniform in [1 - x, 1 + x]."""
    hue: float = 0.0
    """Largest rotation of the colour circle, turns (0.5 reaches all of it), uniform, either way."""
    grayscale: float = 0.0
    """Probability of losing all colour."""
    sharpness: float = 0.0
    """Largest relative change of the distance to a 3x3 mean at the final size: factor uniform in [1 - x, 1 + x]
    (0 is the blurred image, 2 a sharpened one)."""
    outline: float = 0.0
    """Probability of darkened edges, as if drawn with a pen: the spread of grey in each 3x3 neighbourhood, times a
    strength uniform in [0, 2], is taken off."""
    erase: float = 0.0
    """Probability of one erased box (random erasing, arXiv:1708.04896, with a constant fill)."""
    erase_area: tuple[float, float] = (0.02, 0.2)
    """Smallest and largest area of the erased box, fraction of the image, uniform."""

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of its range."""
        _check("scale", self.scale, 0 < self.scale[0] <= self.scale[1], "two positive numbers, the smaller first")
        _check("stretch", self.stretch, self.stretch >= 1, "at least 1")
        _check("shear", self.shear, 0 <= self.shear < 90, "at least 0 and below 90 degrees")
        _check("fill", self.fill, 0 <= self.fill <= 255, "between 0 and 255")
        low, high = self.erase_area
        _check("erase_area", self.erase_area, 0 < low <= high < 1, "two fractions, the smaller first")
        for name in (
            "flip",
            "elastic",
            "outline",
            "grayscale",
            "erase",
            "brightness",
            "contrast",
            "saturation",
            "sharpness",
        ):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name, most in (("rotate", 180), ("translate", 1), ("hue", 0.5)):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= most, f"between 0 and {most}")


def _check(name: str, value: object, fits: bool, rule: str) -> None:
    if not fits:
        raise ArgumentError(f"{name}: {value} must be {rule}")


_NET = 4
"""Number of control points of the elastic warp along each side."""

_COLUMNS = (
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


class Transform:
    """Images to uint8[B, 3, S, S]: shorter side to S and the centre square of the rest, augmented in training.

    Evaluation takes the same path with nothing varied. An image whose shorter side is above 2 S is first reduced to 2 S
    with an antialiasing filter; the bilinear sampling that follows reduces by 2 at most, where it is the mean of 2x2
    pixels and does not alias.
    """

    num_uniforms = len(_COLUMNS)

    def __init__(self, image_size: int, augment: AugmentSettings | None, trim: float | None = None) -> None:
        """``image_size`` is S in pixels. ``augment`` None switches augmentation off.

        ``trim`` is for drawings on a plain ground of the grey level ``fill``: the view becomes the smallest square
        around the drawing plus this margin, a fraction of the square's side. None keeps the image's own frame, as
        photos need. Raises UserError for a value outside of its range.
        """
        if image_size < 1:
            raise UserError(f"data.image_size: {image_size} must be at least 1 pixel")
        if trim is not None and not 0 <= trim < 1:
            raise ArgumentError(
                f"trim: {trim} must be at least 0 and below 1, a fraction of the side; null keeps the frame"
            )
        self.image_size = image_size
        self.augment = augment
        self.trim = trim

    def __call__(self, images: Sequence[Tensor], uniforms: Tensor | None) -> Tensor:
        """Transforms uint8[3, H, W] images of any sizes to uint8[B, 3, S, S].

        ``uniforms`` is float64[B, num_uniforms] in [0, 1), or None for the evaluation image. The result for an image
        does not depend on the other images of the batch.
        """
        settings = self.augment if self.augment is not None and uniforms is not None else AugmentSettings()
        if uniforms is None:
            # 0.5 is the middle of every range: with the default settings it varies nothing.
            uniforms = torch.full((len(images), self.num_uniforms), 0.5, dtype=torch.float64)
        if uniforms.shape != (len(images), self.num_uniforms):
            expected = (len(images), self.num_uniforms)
            raise ValueError(f"uniforms must be float64[B, num_uniforms] = {expected}, not {tuple(uniforms.shape)}")
        draws: Draws = dict(zip(_COLUMNS, uniforms.to(torch.float64).numpy().T, strict=True))
        bend = _elastic(settings, draws, self.image_size) if settings.elastic else None
        pixels = self._sample(images, _inverse_affine(settings, draws), bend, settings.fill)
        if settings.outline:
            pixels = _outline(pixels, settings, draws)
        if settings.brightness or settings.contrast or settings.saturation or settings.hue or settings.grayscale:
            pixels = _vary_colour(pixels, settings, draws)
        if settings.sharpness:
            pixels = _vary_sharpness(pixels, settings, draws)
        if settings.erase:
            pixels = _erase(pixels, settings, draws)
        return pixels.round_().clamp_(0, 255).to(torch.uint8)

    def _sample(self, images: Sequence[Tensor], inverse: NDArray[np.float64], bend: Tensor | None, fill: int) -> Tensor:
        """float32[B, 3, S, S] in 0..255: every image sampled through its map float64[B, 2, 3] from view to picture.

        ``bend`` float32[B, S, S, 2] shifts the points of the view first.
        """
        # Images of one shape are sampled together.
        out = torch.empty(len(images), 3, self.image_size, self.image_size)
        for shape, rows in _rows_by_shape(images).items():
            pictures = torch.stack([images[row] for row in rows])
            to_picture = inverse[rows] if self.trim is None else _framed(inverse[rows], pictures, fill, self.trim)
            group = self._reduce(pictures)
            # Both axes are measured in half shorter sides; grid_sample wants halves of each side.
            per_side = np.array([min(shape) / shape[1], min(shape) / shape[0]])
            grid = self._grid(_float(to_picture * per_side[None, :, None]), None if bend is None else bend[rows])
            # grid_sample reads 0 outside of the picture: shifted by `fill`, 0 means `fill`.
            shifted = group.float().sub_(fill)
            sampled = F.grid_sample(shifted, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            out[rows] = sampled.add_(fill)
        return out

    def _grid(self, theta: Tensor, bend: Tensor | None) -> Tensor:
        """float32[G, S, S, 2]: the pixel centres of the view, shifted by ``bend``, under the maps float32[G, 2, 3].

        As `F.affine_grid`, but without its matrix product, whose rounding may depend on the size of the batch.
        """
        centres = (torch.arange(self.image_size) * 2 + 1) / self.image_size - 1
        x, y = centres[None, None, :, None], centres[None, :, None, None]
        if bend is not None:
            x, y = x + bend[..., 0:1], y + bend[..., 1:2]
        return theta[:, None, None, :, 0] * x + theta[:, None, None, :, 1] * y + theta[:, None, None, :, 2]

    def _reduce(self, images: Tensor) -> Tensor:
        """The images uint8[G, 3, H, W], reduced such that the shorter side is at most 2 S."""
        height, width = images.shape[-2:]
        shorter, limit = min(height, width), 2 * self.image_size
        if shorter <= limit:
            return images
        size = [max(limit, round(side * limit / shorter)) for side in (height, width)]
        return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


GROUND_TOLERANCE = 16
"""Number of grey levels by which compression may change a pixel of the plain ground from ``fill``."""


def _framed(inverse: NDArray[np.float64], pictures: Tensor, fill: int, margin: float) -> NDArray[np.float64]:
    """float64[G, 2, 3]: the maps ``inverse`` from view to picture, such that the view is the square around the drawing.

    ``pictures`` uint8[G, 3, H, W]. A picture without a drawing on its ground keeps its own frame.
    """
    # A pixel belongs to the drawing if one of its channels is off the ground by more than the tolerance.
    off = pictures < max(0, fill - GROUND_TOLERANCE)
    if fill + GROUND_TOLERANCE < 255:
        off |= pictures > fill + GROUND_TOLERANCE
    drawn = (off[:, 0] | off[:, 1] | off[:, 2]).numpy()
    half_side = min(pictures.shape[-2:]) / 2
    centres, halves = [], []
    # Columns and rows that have a drawn pixel give the extent in x and y, in half shorter sides from the middle.
    for line in (np.asarray(drawn.any(axis=1)), np.asarray(drawn.any(axis=2))):
        size = line.shape[1]
        first, last = line.argmax(axis=1), size - line[:, ::-1].argmax(axis=1)
        centres.append(((first + last) / 2 - size / 2) / half_side)
        halves.append((last - first) / 2 / half_side)
    found = np.asarray(drawn.any(axis=(1, 2)))
    half = np.where(found, np.maximum(*halves) * (1 + margin), 1.0)
    framed = inverse * half[:, None, None]
    framed[:, :, 2] += np.where(found[:, None], np.stack(centres, axis=1), 0.0)
    return framed


def _rows_by_shape(images: Sequence[Tensor]) -> dict[tuple[int, int], list[int]]:
    """For each (height, width) the numbers of the images that have it."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault((image.shape[1], image.shape[2]), []).append(row)
    return rows


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _either_way(draw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform in [-1, 1) from uniform in [0, 1)."""
    return 2 * draw - 1


def _factor(draw: NDArray[np.float64], change: float) -> NDArray[np.float64]:
    """Uniform in [1 - ``change``, 1 + ``change``) from uniform in [0, 1)."""
    return 1 + change * _either_way(draw)


def _elastic(settings: AugmentSettings, draws: Draws, size: int) -> Tensor:
    """float32[B, S, S, 2]: the shift of each point of the view in x and y, in half sides."""
    axes = [np.stack([draws[f"elastic_{axis}_{point}"] for point in range(_NET**2)], axis=1) for axis in "xy"]
    net = _float(2 * settings.elastic * _either_way(np.stack(axes, axis=1))).view(-1, 2, _NET, _NET)
    return F.interpolate(net, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def _inverse_affine(settings: AugmentSettings, draws: Draws) -> NDArray[np.float64]:
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


def _vary_colour(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
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
    offset = _float((1 - contrast) * brightness * _mean_grey(pixels))[:, None, None, None]
    matrix = _float(colour * (contrast * brightness)[:, None, None])[:, :, :, None, None]
    out = pixels[:, 0:1] * matrix[:, :, 0] + offset
    return out.addcmul_(pixels[:, 1:2], matrix[:, :, 1]).addcmul_(pixels[:, 2:3], matrix[:, :, 2])


def _mean_grey(pixels: Tensor) -> NDArray[np.float64]:
    """float64[B]: the mean grey of each image. Sums integers, because a float sum depends on threads and batch size."""
    sums = pixels.round().to(torch.int32).sum(dim=(2, 3), dtype=torch.int64)
    return (sums.numpy() * _LUMA).sum(1) / (pixels.shape[2] * pixels.shape[3])


def _outline(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Darkens edges by the spread, largest minus smallest grey, of each 3x3 neighbourhood."""
    grey = pixels.mean(dim=1, keepdim=True)
    spread = _around(grey, torch.maximum) + _around(-grey, torch.maximum)
    strength = np.where(draws["outline"] < settings.outline, 2 * draws["outline_strength"], 0.0)
    return (pixels - spread * _float(strength)[:, None, None, None]).clamp_(min=0)


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


def _vary_sharpness(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Moves each image away from or towards its 3x3 mean."""
    # Divided by the number of neighbours, which is smaller at the edges.
    blurred = _around(pixels, torch.add) / _around(torch.ones_like(pixels[:1, :1]), torch.add)
    factor = _float(_factor(draws["sharpness"], settings.sharpness))[:, None, None, None]
    return torch.lerp(blurred, pixels, factor)


def _erase(pixels: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
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
