"""Who is compared with whom, and who is whose positive: tile by tile, never as one matrix."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.distributed import gather, rank
from mmlm.objectives.shared.keys import Keys, own_texts

Positives = Literal["concept", "text", "own"]
"""Which captions are positives of an image: ``own`` its own captions only (CLIP: every other is a negative); ``text``
also captions of other images with the text of one of its own; ``concept`` also captions of its concept."""


@dataclass(frozen=True)
class Candidates:
    """n local images that have a caption, and the N captions of all ranks that have an image; no others take part.

    An image and a caption are positives of each other if they agree in at least one of ``labels``.
    """

    images: Tensor
    """bool[B]: which of the local images take part, n of them."""
    captions: Tensor
    """bool[C]: which of the local captions take part."""
    own: slice
    """Where the local ones stand among the N captions of all ranks (in rank order)."""
    labels: tuple[tuple[Tensor, Tensor], ...]
    """Pairs of int64[n] and int64[N]."""

    @classmethod
    def of(cls, keys: Keys, positives: Positives) -> "Candidates":
        """Of a rank's ``keys``; captions are gathered over ranks, so every rank has to call this."""
        images, captions = keys.has_caption, keys.has_image
        sizes = gather(torch.tensor([[len(images), int(captions.sum())]], device=images.device))
        first_image, first_caption = sizes[: rank()].sum(dim=0).tolist()
        own = slice(first_caption, first_caption + int(sizes[rank(), 1]))
        index = keys.image_index[captions]
        if positives == "own":
            number = torch.arange(len(images), device=images.device)[images]
            return cls(images, captions, own, ((number + first_image, gather(index + first_image)),))
        texts = gather(keys.caption_key[captions])
        of_text = [(key, texts) for key in own_texts(index, keys.caption_key[captions], len(images))[images].T]
        if positives == "text":
            return cls(images, captions, own, tuple(of_text))
        of_concept = (keys.image_concept[images], gather(keys.caption_concept[captions]))
        return cls(images, captions, own, (of_concept, *of_text))

    def positive(self, rows: slice, columns: slice) -> Tensor:
        """bool[r, c]: whether these of the n images and these of the N captions are positives of each other."""
        (image, caption), *others = self.labels
        found = image[rows, None] == caption[None, columns]
        for image, caption in others:
            found |= image[rows, None] == caption[None, columns]
        return found
