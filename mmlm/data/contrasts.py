"""Captions that are true of an image, each with one that is false of it: what tests of compositionality are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Contrast:
    """Two captions of one image. The more alike they are, the more a model has to have understood."""

    kind: str
    """What differs, in a word that may stand in the name of a score: ``swap_colour``."""
    true: str
    """What is so."""
    false: str
    """What is not."""
    group: str | None = None
    """Two contrasts of one group, of two images, have each other's captions (Winoground); None: it stands alone."""


Contrasts = Mapping[str, Sequence[Contrast]]
"""The contrasts of each image, by its id. An image may be without."""


@runtime_checkable
class HasContrasts(Protocol):
    """A source that knows captions that are false of its images."""

    def contrasts(self) -> Contrasts:
        """Those of all images, without decoding one."""
        ...
