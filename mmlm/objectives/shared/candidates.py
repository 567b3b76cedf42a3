"""Which images and captions a contrastive loss compares, and which are positives: tile by tile, never as one matrix."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.distributed import gather, rank
from mmlm.objectives.shared.keys import Keys, own_texts

Positives = Literal["concept", "text", "own"]
"""Which captions are positives of an image. ``own``: its own captions only (CLIP: every other is a negative).
``text``: also other images' captions that have the text of one of its own. ``concept``: also those of its concept."""


@dataclass(frozen=True)
class Candidates:
    """The n images of this rank that have a caption, and the N captions of all ranks that have an image.

    No other image or caption takes part. An image and a caption are positives if they agree in one of ``labels``.
    """

    images: Tensor
    """bool[B]: true for the n images of this rank that take part."""
    captions: Tensor
    """bool[C]: true for the captions of this rank that take part."""
    own: slice
    """The place of this rank's captions among the N captions of all ranks, which stand in rank order."""
    labels: tuple[tuple[Tensor, Tensor], ...]
    """Pairs of int64[n] and int64[N]: a label of each image and of each caption, such as the concept."""

    @classmethod
    def of(cls, keys: Keys, positives: Positives) -> "Candidates":
        """The candidates for the ``keys`` of a rank. Gathers captions, so every rank has to call it."""
        images, captions = keys.has_caption, keys.has_image
        sizes = gather(torch.tensor([[len(images), int(captions.sum())]], device=images.device))
        first_image, first_caption = sizes[: rank()].sum(dim=0).tolist()
        own = slice(first_caption, first_caption + int(sizes[rank(), 1]))
        index = keys.image_index[captions]
        if positives == "own":
            # The label is the image's number among the images of all ranks, which only its own captions share.
            number = torch.arange(len(images), device=images.device)[images]
            return cls(images, captions, own, ((number + first_image, gather(index + first_image)),))
        texts = gather(keys.caption_key[captions])
        # One label for each of an image's captions; see own_texts for images that have fewer than the most.
        of_text = [(key, texts) for key in own_texts(index, keys.caption_key[captions], len(images))[images].T]
        if positives == "text":
            return cls(images, captions, own, tuple(of_text))
        of_concept = (keys.image_concept[images], gather(keys.caption_concept[captions]))
        return cls(images, captions, own, (of_concept, *of_text))

    def positive(self, rows: slice, columns: slice) -> Tensor:
        """bool[r, c]: true for positives, with ``rows`` of the n images and ``columns`` of the N captions."""
        (image, caption), *others = self.labels
        found = image[rows, None] == caption[None, columns]
        for image, caption in others:
            found |= image[rows, None] == caption[None, columns]
        return found
