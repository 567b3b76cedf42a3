"""The integers that decide which images and captions are positives of each other: of a micro-batch, a rank or all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.distributed import gather, rank


@dataclass(frozen=True)
class Keys:
    """The keys of B images and C captions; see ``Batch`` for their meaning."""

    image_concept: Tensor
    """int64[B]."""
    caption_concept: Tensor
    """int64[C]."""
    caption_key: Tensor
    """int64[C]."""
    image_index: Tensor
    """int64[C]: the image of each caption, a number below B, or ``TEXT_ONLY``, also for what is not compared."""
    negative: Tensor | None = None
    """bool[C]: texts that are false of their image; see ``Batch``. None on every rank, or on none."""

    @classmethod
    def of(cls, *batches: Batch) -> "Keys":
        """The keys of a rank's micro-batches, joined in order."""
        firsts, first = [], 0
        for batch in batches:
            firsts.append(first)
            first += len(batch.image_concept)
        flags = [batch.negative for batch in batches if batch.negative is not None]
        return cls(
            torch.cat([batch.image_concept for batch in batches]),
            torch.cat([batch.caption_concept for batch in batches]),
            torch.cat([batch.caption_key for batch in batches]),
            torch.cat([_shifted(batch.compared_index, shift) for batch, shift in zip(batches, firsts, strict=True)]),
            None if not flags else torch.cat(flags),
        )

    def gathered(self) -> "Keys":
        """The keys of all ranks, joined in rank order."""
        sizes = gather(torch.tensor([len(self.image_concept)], device=self.image_index.device))
        index = gather(_shifted(self.image_index, sizes[: rank()].sum()))
        negative = None if self.negative is None else gather(self.negative)
        return Keys(gather(self.image_concept), gather(self.caption_concept), gather(self.caption_key), index, negative)

    @property
    def has_image(self) -> Tensor:
        """bool[C]: true for captions that belong to an image."""
        return self.image_index != TEXT_ONLY

    @property
    def has_caption(self) -> Tensor:
        """bool[B]: true for images that have a caption."""
        found = torch.zeros(len(self.image_concept), dtype=torch.bool, device=self.image_index.device)
        return found.index_fill(0, self.image_index[self.has_image], True)


def _shifted(image_index: Tensor, shift: int | Tensor) -> Tensor:
    """int64[C]: the images' numbers once ``shift`` images of others stand before them."""
    return torch.where(image_index == TEXT_ONLY, image_index, image_index + shift)


@dataclass(frozen=True)
class Labels:
    """Integers that B images and C captions have, in pairs of int64[B] and int64[C], such as their concepts.

    An image and a caption are positives if they agree in one of the pairs.
    """

    pairs: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, images: Keys, captions: Keys) -> "Labels":
        """The labels by which they share a concept, or a caption of the image has the caption's text.

        ``images`` gives the images (with the captions that these have), ``captions`` the captions. Images without a
        caption and text-only captions have labels too, which mean nothing.
        """
        owned = images.has_image
        table = own_texts(images.image_index[owned], images.caption_key[owned], len(images.image_concept))
        # One pair for each caption of the image that has the most.
        texts = tuple((key, captions.caption_key) for key in table.T)
        return cls(((images.image_concept, captions.caption_concept), *texts))

    def positive(self, rows: slice, columns: slice) -> Tensor:
        """bool[r, c]: true for positives, with ``rows`` of the images and ``columns`` of the captions."""
        (image, caption), *others = self.pairs
        found = image[rows, None] == caption[None, columns]
        for image, caption in others:
            found |= image[rows, None] == caption[None, columns]
        return found


def own_texts(index: Tensor, key: Tensor, num_images: int) -> Tensor:
    """int64[B, K]: for each image the ``key`` int64[C] of its own captions; K is the most that an image has.

    The first caption's key fills the row of an image with fewer. ``index`` int64[C] is the image of each caption. The
    row of an image without a caption means nothing.
    """
    # Sorted by image, the captions of image b stand at firsts[b], firsts[b] + 1, ...
    order = index.argsort(stable=True)
    index, key = index[order], key[order]
    counts = index.bincount(minlength=num_images)
    if len(index) == 0:
        return key.new_zeros(num_images, 1)
    firsts = counts.cumsum(0) - counts
    # The clamp is for trailing images without a caption, whose first would lie beyond the end.
    table = key[firsts.clamp(max=len(key) - 1)][:, None].repeat(1, int(counts.max()))
    table[index, torch.arange(len(key), device=key.device) - firsts[index]] = key
    return table
