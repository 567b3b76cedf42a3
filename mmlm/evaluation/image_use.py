"""Image-use gap: how much worse a captioner predicts the captions when it is shown another image.

The gap of a caption is its loss given a wrong image minus its loss given its own image. It is 0 for a captioner that
ignores the image, however good, and has the unit of the losses (nats a token, for mean cross-entropy).
Shuffling an input to measure how much a model uses it is permutation importance (Breiman, Machine Learning 2001;
arXiv:1801.01489). Two choices of ours: the wrong image is never one of the same concept, and the interval resamples
concepts rather than captions, since captions of one concept are not independent (the cluster bootstrap, Field and
Welsh, JRSS B 2007).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.evaluation.intervals import percentiles, resampled_sums

FIGURES = {
    "mean": Figure(
        "Image-use gap",
        "caption loss with shuffled images minus with the true ones, nats a token, with its 95% interval; 0 if the "
        "image is ignored",
        FigureGroup("Grounding", "Does the decoder use its image at all?"),
        higher_is_better=True,
        chance=0,
        low="low",
        high="high",
        shown=("table", "chart", "console"),
    )
}
"""What the names of ``ImageUseGap.items`` are."""


@dataclass(frozen=True)
class ImageUseGap:
    """Mean gap over captions, with a bootstrap interval, in the unit of the losses given."""

    mean: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    def items(self) -> Iterator[tuple[str, float]]:
        """Yields ``(name, value)``: mean, low, high."""
        yield "mean", self.mean
        yield "low", self.low
        yield "high", self.high


def shuffled_images(image_concept: Tensor, seed: int) -> Tensor:
    """int64[B]: a random permutation of image rows such that no image gets one of its own concept.

    ``image_concept`` int64[B]: equal keys are one concept. Image i is replaced by image ``result[i]``; each image
    stands in for exactly one other, so both conditions see the same images equally often. On the CPU, and a function of
    its arguments only.

    Images are put in a random order that keeps concepts together, and rotated by a random number of places that
    clears the largest concept at both ends. Raises UserError if one concept holds more than half of the images, for
    then no such permutation exists.
    """
    concepts, group, counts = torch.unique(image_concept.cpu(), return_inverse=True, return_counts=True)
    num_images = len(group)
    largest = int(counts.max()) if num_images else 0
    if num_images < 2 or 2 * largest > num_images:
        raise UserError(
            f"one concept has {largest} of {num_images} images: the image-use gap swaps images between concepts, "
            f"so no concept may have more than half of them; evaluate on more concepts"
        )
    # Concepts in a random order, and the images of each concept in a random order next to each other. Two images of one
    # concept are then less than ``largest`` places apart, so a rotation by ``largest`` to ``num_images - largest``
    # places never gives an image one of its own concept.
    generator = torch.Generator().manual_seed(seed)
    place_of_concept = torch.randperm(len(concepts), generator=generator)
    within = torch.randperm(num_images, generator=generator)
    order = within[place_of_concept[group[within]].argsort(stable=True)]
    shift = largest + int(torch.randint(num_images - 2 * largest + 1, (), generator=generator))
    result = torch.empty_like(order)
    result[order] = order.roll(-shift)
    return result


def image_use_gap(
    true_loss: Tensor,
    shuffled_loss: Tensor,
    concept: Tensor,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> ImageUseGap:
    """Mean of ``shuffled_loss - true_loss`` over captions, and its percentile bootstrap interval.

    ``true_loss`` and ``shuffled_loss`` float[C]: a caption's loss given its own image and given another; ``concept``
    int64[C]. A resample draws as many concepts as there are, with replacement, each with all of its captions, and
    takes the mean over the captions drawn. Computed in float64 on the CPU; the interval depends on ``seed`` only. It
    covers the choice of concepts, not the choice of shuffle or of training seed.

    Raises ValueError for losses that are not finite, lengths that differ, fewer than 2 concepts (nothing to
    resample), or settings out of range.
    """
    gap = _checked_gap(true_loss, shuffled_loss, concept, resamples, confidence)
    concepts = len(concept.unique())
    if concepts < 2:
        raise ValueError(f"{concepts} concept among {len(gap)} captions: an interval over concepts needs at least 2")
    drawn = resampled_sums(torch.stack([gap, torch.ones_like(gap)], dim=1), concept, seed, resamples)
    low, high = percentiles(drawn[:, 0] / drawn[:, 1], confidence).tolist()
    return ImageUseGap(gap.mean().item(), low, high)


def _checked_gap(
    true_loss: Tensor, shuffled_loss: Tensor, concept: Tensor, resamples: int, confidence: float
) -> Tensor:
    """The gap of each caption, float64[C] on the CPU. Raises ValueError as ``image_use_gap``."""
    if not (true_loss.ndim == 1 and true_loss.shape == shuffled_loss.shape == concept.shape):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (true_loss, shuffled_loss, concept))
        raise ValueError(f"true_loss, shuffled_loss and concept have shapes {shapes}: give one value a caption, [C]")
    if resamples < 1 or not (math.isfinite(confidence) and 0 < confidence < 1):
        raise ValueError(f"resamples {resamples} must be at least 1 and confidence {confidence} between 0 and 1")
    gap = shuffled_loss.detach().cpu().double() - true_loss.detach().cpu().double()
    if not torch.isfinite(gap).all():
        row = int((~torch.isfinite(gap)).nonzero()[0])
        raise ValueError(f"losses are not finite, first that of caption {row}: they have no gap")
    return gap
