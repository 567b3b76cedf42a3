"""Draws the scenes of ``mmlm.data.scenes``: two groups of plain shapes on a light ground, with anti-aliased edges.

Every step is addition, multiplication, a square root or a comparison in float64, which are rounded alike on every
machine: there is no sine, no sum over pixels and nothing that a library may order as it likes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (226, 74, 69),
    "yellow": (246, 190, 58),
    "green": (66, 160, 97),
    "blue": (62, 118, 206),
    "purple": (150, 92, 190),
    "black": (49, 53, 66),
}
"""What a colour is called, and its red, green and blue."""
GROUNDS = ((250, 246, 238), (240, 245, 250), (241, 248, 241), (249, 241, 243), (244, 243, 250))
"""The colours that a scene may be drawn on."""
SIZES: Mapping[str, float] = {"small": 2.9, "large": 4.7}
"""What a size is called, and about how far a shape reaches from its middle, in 32nds of the picture's side."""
UNITS = 32
"""The side of a picture in the unit of ``SIZES``."""

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """One shape in its place; all lengths in pixels."""

    shape: str
    colour: tuple[float, float, float]
    x: float
    """Of its middle, from the left edge."""
    y: float
    """Of its middle, from the upper edge."""
    radius: float
    """How far it reaches from its middle."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Its left, upper, right and lower end."""
        left, upper, right, lower = (self.radius * part for part in EXTENTS[self.shape])
        return self.x - left, self.y - upper, self.x + right, self.y + lower


def _circle(x: Plane, y: Plane, radius: float) -> Plane:
    return np.sqrt(x * x + y * y) - radius


def _square(x: Plane, y: Plane, radius: float) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius


def _triangle(x: Plane, y: Plane, radius: float) -> Plane:
    # Two sides from the tip (0, -radius) to the ends of the base (+-width, base); a side's distance is that of a line.
    width, base = 0.98 * radius, 0.8 * radius
    rise = base + radius
    side = (np.abs(x) * rise - (y + radius) * width) / (rise * rise + width * width) ** 0.5
    return np.maximum(side, y - base)


def _cross(x: Plane, y: Plane, radius: float) -> Plane:
    across, along, arm = np.abs(x), np.abs(y), 0.36 * radius
    return np.minimum(np.maximum(across - radius, along - arm), np.maximum(across - arm, along - radius))


def _ring(x: Plane, y: Plane, radius: float) -> Plane:
    return np.abs(np.sqrt(x * x + y * y) - 0.74 * radius) - 0.26 * radius


SHAPES: Mapping[str, Callable[[Plane, Plane, float], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
}
"""What a shape is called, and the signed distance of pixels from its edge, below 0 inside: (x, y, radius) -> pixels."""
EXTENTS: Mapping[str, tuple[float, float, float, float]] = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.88, 0.88, 0.88, 0.88),
    "triangle": (0.98, 1.0, 0.98, 0.8),
    "cross": (1.0, 1.0, 1.0, 1.0),
    "ring": (1.0, 1.0, 1.0, 1.0),
}
"""How far each shape reaches to the left, up, to the right and down, in radii."""


def coverage(drawn: Drawn, size: int) -> Plane:
    """float64[size, size]: the share of each pixel that the shape covers, from its distance to the shape's edge."""
    middles = np.arange(size, dtype=np.float64) + 0.5
    distance = SHAPES[drawn.shape](middles[None, :] - drawn.x, middles[:, None] - drawn.y, drawn.radius)
    return np.minimum(np.maximum(0.5 - distance, 0.0), 1.0)


def paint(ground: Sequence[float], shapes: Sequence[Drawn], size: int) -> NDArray[np.uint8]:
    """uint8[3, size, size]: the shapes, later ones on top, on a ground of one colour."""
    image = np.empty((3, size, size))
    image[:] = np.array(ground, dtype=np.float64)[:, None, None]
    for drawn in shapes:
        covered = coverage(drawn, size)
        image += (np.array(drawn.colour)[:, None, None] - image) * covered
    return np.floor(image + 0.5).astype(np.uint8)
