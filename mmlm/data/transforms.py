"""Images of any size to one square size, with augmentation: a few vectorised passes over the whole batch.

Geometry is one affine `grid_sample`, colour is one affine map of RGB per image. All randomness is an argument
(``uniforms``), so that an example's augmentation depends on (seed, epoch, example) and on nothing else.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.augment_settings import AugmentSettings
from mmlm.data.augmentation import (
    COLUMNS,
    Draws,
    elastic,
    erase,
    inverse_affine,
    outline,
    to_float32,
    vary_colour,
    vary_sharpness,
)


class Transform:
    """Images to uint8[B, 3, S, S]: shorter side to S and the centre square of the rest, augmented in training.

    Evaluation takes the same path with nothing varied. An image whose shorter side is above 2 S is first reduced to 2 S
    with an antialiasing filter; the bilinear sampling that follows reduces by 2 at most, where it is the mean of 2x2
    pixels and does not alias.
    """

    num_uniforms = len(COLUMNS)
    resample = 2
    """How evaluation resizes, by the number of Pillow and transformers: 2 is linear, 3 cubic."""
    at_least: int | None = None
    """Pixels that a JPEG image must keep a side where it is decoded at a fraction of its size; None decodes all of it.
    See ``ReadsReduced``."""

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
        draws: Draws = dict(zip(COLUMNS, uniforms.to(torch.float64).numpy().T, strict=True))
        bend = elastic(settings, draws, self.image_size) if settings.elastic else None
        pixels = self._sample(images, inverse_affine(settings, draws), bend, settings.fill)
        if settings.outline:
            pixels = outline(pixels, settings, draws)
        if settings.brightness or settings.contrast or settings.saturation or settings.hue or settings.grayscale:
            pixels = vary_colour(pixels, settings, draws)
        if settings.sharpness:
            pixels = vary_sharpness(pixels, settings, draws)
        if settings.erase:
            pixels = erase(pixels, settings, draws)
        return pixels.round_().clamp_(0, 255).to(torch.uint8)

    def _sample(self, images: Sequence[Tensor], inverse: NDArray[np.float64], bend: Tensor | None, fill: int) -> Tensor:
        """float32[B, 3, S, S] in 0..255: every image sampled through its map float64[B, 2, 3] from view to picture.

        ``bend`` float32[B, S, S, 2] shifts the points of the view first.
        """
        # Images of one shape are sampled together.
        out = torch.empty(len(images), 3, self.image_size, self.image_size)
        for shape, rows in _rows_by_shape(images).items():
            # From whatever order in memory: with another one, sums could be rounded otherwise.
            pictures = torch.stack([images[row] for row in rows]).contiguous()
            to_picture = inverse[rows] if self.trim is None else _framed(inverse[rows], pictures, fill, self.trim)
            group = self._reduce(pictures)
            # Both axes are measured in half shorter sides; grid_sample wants halves of each side.
            per_side = np.array([min(shape) / shape[1], min(shape) / shape[0]])
            grid = self._grid(to_float32(to_picture * per_side[None, :, None]), None if bend is None else bend[rows])
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
