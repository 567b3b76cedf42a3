"""What images of each class are given to: a confusion matrix, for the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmlm.core.wording import cut
from mmlm.evaluation.macro_scores import Given
from mmlm.evaluation.split import EncodedSplit

MOST_CLASSES = 30
"""Classes of which a matrix is still a picture."""
_LONGEST = 40
"""Characters of a class's name that are written down."""


@dataclass(frozen=True)
class Confusion:
    """Images by their own class (rows) and the class that they are given to (columns)."""

    classes: tuple[str, ...]
    """What each of the K classes is called."""
    counts: Tensor
    """float64[K, K]: numbers of images; classes of equal similarity share one evenly."""

    def as_json(self) -> Mapping[str, Any]:
        """As ``items.json`` holds it."""
        return {"classes": [cut(name, _LONGEST) for name in self.classes], "counts": self.counts.tolist()}


@runtime_checkable
class Confusing(Protocol):
    """An evaluator that gives images to classes."""

    def confusion(self, split: EncodedSplit) -> Confusion | None:
        """None where there are too many classes to look at. All ranks call it, and get the same."""
        ...


def confusion_counts(given: Given, labels: Tensor, count: int) -> Tensor:
    """float64[count, count]: images by their own class, int64[B] ``labels`` on the CPU, and by what they are given."""
    places = labels[given.image] * count + given.classes
    return torch.zeros(count * count, dtype=torch.float64).index_add(0, places, given.share).view(count, count)
