"""Precision and F1 of a classification, every class weighing the same, with their 95% intervals."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.computing import exact_float32
from mmlm.core.intervals import wilson

_IMAGES_AT_ONCE = 1024
"""Images that are compared with all classes at once."""


@dataclass(frozen=True)
class MacroScore:
    """A score in [0, 1], its interval, and what guessing every class as often as any other reaches."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Given:
    """To which classes n images were given. An image of which m classes are equally near is given to each by 1 / m."""

    image: Tensor
    """int64[m]: rows of images."""
    classes: Tensor
    """int64[m]: the class of each row."""
    share: Tensor
    """float64[m]: how much of the image it gets; the shares of an image sum to 1."""


def given_classes(images: Tensor, classes: Tensor) -> Given:
    """The nearest classes of float[B, E] ``images`` among float[K, E] ``classes``, both of unit length; on the CPU."""
    found = [Given(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0).double())]
    with exact_float32(images.device):
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            similar = images[start : start + _IMAGES_AT_ONCE].float() @ classes.float().T
            nearest = similar == similar.max(dim=1, keepdim=True).values
            row, number = nearest.nonzero().cpu().unbind(dim=1)
            found.append(Given(row + start, number, 1 / nearest.sum(dim=1).cpu().double()[row]))
    return Given(*(torch.cat([getattr(part, name) for part in found]) for name in ("image", "classes", "share")))


def macro_scores(given: Given, labels: Tensor, count: int) -> tuple[MacroScore, MacroScore]:
    """Precision and F1, each the mean over those of ``count`` classes that have images; ``labels`` int64[B] on the CPU.

    A class that no image is given to has precision 0 (as in scikit-learn with ``zero_division=0``). Precision is
    tp / given and F1 is 2 tp / (given + images) of a class. The intervals are Wilson's with the variance of the delta
    method, images being drawn independently.
    """
    own = labels[given.image] == given.classes
    images = torch.bincount(labels, minlength=count).double()
    total = images.new_zeros(count).index_add(0, given.classes, given.share)
    right = images.new_zeros(count).index_add(0, given.classes, given.share * own)
    there = images > 0
    guessed = images.sum() / count

    def score(weight: float, divisor: Tensor, of_images: float, by_chance: Tensor) -> MacroScore:
        """Mean of weight * right / divisor; the divisor grows by ``of_images`` with an image of the class."""
        safe = divisor.clamp(min=1e-300)
        each = torch.where(divisor > 0, weight * right / safe, 0.0)
        by_right = torch.where(there & (divisor > 0), weight / safe, 0.0) / there.sum()
        by_divisor = torch.where(there & (divisor > 0), -each / safe, 0.0) / there.sum()
        influence = of_images * by_divisor[labels]
        moved = given.share * (own * by_right[given.classes] + by_divisor[given.classes])
        variance = influence.index_add(0, given.image, moved).square().sum().item()
        value = each[there].mean().item()
        # Without any variance (all right, say) the images' number is what counts.
        items = min(float(len(labels)), value * (1 - value) / variance) if variance > 0 else float(len(labels))
        low, high = wilson(value, max(items, 1.0))
        return MacroScore(value, low, high, by_chance[there].mean().item())

    precision = score(1.0, total, 0.0, images / images.sum())
    f1 = score(2.0, total + images, 1.0, 2 * images / count / (guessed + images))
    return precision, f1
