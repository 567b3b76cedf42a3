"""What an image looks like in a few bytes, and which images look alike: equal pixels, or nearly equal ones."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

DISTANCE = 3
"""Bits of 64 in which the gradients of two images may differ for them to look alike."""
COLOUR = 12
"""Levels of 255 by which their mean colours may differ."""
_BANDS = DISTANCE + 1
"""Of two gradients that differ in at most ``DISTANCE`` bits, one of this number of bands of bits is equal."""
_ROWS = 512
"""Images of one band that are compared with all others of it at a time."""


@dataclass(frozen=True)
class Look:
    """What is kept of an image."""

    pixels: bytes
    """A digest of the size and the pixels: 16 bytes."""
    gradient: int
    """64 bits: whether each of 8 x 8 cells of the grey image is darker than the cell to its right (a difference hash:
    it stays much the same when an image is scaled, compressed or brightened)."""
    colour: tuple[int, int, int]
    """The mean of each channel, 0 to 255. Images without much of a gradient differ in it."""


def look_of(image: Tensor) -> Look:
    """The look of uint8[3, H, W]."""
    digest = hashlib.blake2b(repr(tuple(image.shape)).encode(), digest_size=16)
    digest.update(image.contiguous().numpy().data)
    small = interpolate(image[None].float(), size=(8, 9), mode="area")[0]
    grey = small.mean(dim=0)
    # Rounded, so that noise of the last digits makes no edges in a flat area.
    darker = (grey[:, :-1].round() < grey[:, 1:].round()).flatten().tolist()
    means = image.float().mean(dim=(1, 2)).round().to(torch.int64).tolist()
    return Look(digest.digest(), sum(1 << place for place, bit in enumerate(darker) if bit), tuple(means))


def equal_pixels(looks: Sequence[Look]) -> list[list[int]]:
    """The groups of at least two images with equal pixels, each in order, the groups by their first images."""
    of: dict[bytes, list[int]] = {}
    for number, look in enumerate(looks):
        of.setdefault(look.pixels, []).append(number)
    return [group for group in of.values() if len(group) > 1]


def alike(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """The pairs (smaller number first) of images that look alike and do not have equal pixels, each pair once."""
    gradients = np.array([look.gradient for look in looks], dtype=np.uint64)
    colours = np.array([look.colour for look in looks], dtype=np.int64).reshape(-1, 3)
    width = 64 // _BANDS
    bands = [gradients >> np.uint64(width * band) & np.uint64(2**width - 1) for band in range(_BANDS)]
    for band, values in enumerate(bands):
        order = np.argsort(values, kind="stable")
        ends = np.flatnonzero(np.diff(values[order], append=np.uint64(2**width))) + 1
        for group in np.split(order, ends[:-1]):
            for one, other in _pairs(group, gradients, colours):
                # A pair that an earlier band has in common was found there.
                known = any(earlier[one] == earlier[other] for earlier in bands[:band])
                if not known and looks[one].pixels != looks[other].pixels:
                    yield one, other


def _pairs(
    group: NDArray[np.int64], gradients: NDArray[np.uint64], colours: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """The pairs of a group (its numbers ascending) that are near in gradient and in colour."""
    for start in range(0, len(group), _ROWS):
        rows = group[start : start + _ROWS]
        bits = np.bitwise_count(gradients[rows, None] ^ gradients[None, group])
        shades = np.abs(colours[rows, None] - colours[None, group]).max(axis=-1)
        near = (bits <= DISTANCE) & (shades <= COLOUR) & (rows[:, None] < group[None])
        for row, column in np.argwhere(near).tolist():
            yield int(rows[row]), int(group[column])
