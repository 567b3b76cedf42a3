"""Where in an image something is that a text names."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A text and the pixels that it names."""

    text: str
    mask: Tensor
    """float32[H, W]: the share of each pixel that belongs to it, at the size of the source's image."""


@runtime_checkable
class HasRegions(Protocol):
    """A source that knows regions of its images."""

    def regions(self, id: str) -> tuple[Region, ...]:
        """Those of the image with this id; none, if it has none."""
        ...
