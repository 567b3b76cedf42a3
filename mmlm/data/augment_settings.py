"""The augmentation of training images: each setting, what it varies, and its range."""

import math
from dataclasses import dataclass

from mmlm.core.errors import ArgumentError


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
        _check(
            "scale",
            self.scale,
            0 < self.scale[0] <= self.scale[1] < math.inf,
            "two positive numbers, the smaller first",
        )
        _check("stretch", self.stretch, 1 <= self.stretch < math.inf, "at least 1")
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
