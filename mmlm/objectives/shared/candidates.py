"""Which images and captions a contrastive loss compares, and which are positives: tile by tile, never as one matrix."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.distributed import gather, rank
from mmlm.objectives.kernels.tiled import TILE, product, tiles
from mmlm.objectives.shared.keys import Keys, Labels, own_texts

Positives = Literal["concept", "text", "own"]
"""Which captions are positives of an image. ``own``: its own captions only (CLIP: every other is a negative).
``text``: also other images' captions that have the text of one of its own. ``concept``: also those of its concept."""

NONE = -1
"""Stands for the choice of a query that has no negative in the batch."""


@dataclass(frozen=True)
class Tile:
    """A part of the matrix of this rank's n images and the N captions of all ranks."""

    rows: slice
    """Which of the n images."""
    columns: slice
    """Which of the N captions."""
    similarity: Tensor
    """float[r, c]."""
    positive: Tensor
    """bool[r, c]: true for positives; every other pair is a negative."""


@dataclass(frozen=True)
class Candidates:
    """The n images of this rank that have a caption, and the N captions of all ranks that have an image.

    No other image or caption takes part. A loss of one's own begins with::

        candidates = Candidates.of(keys, positives)
        own, captions = image[candidates.images], gather(text[candidates.captions])

    and goes on with ``tiles(own, captions)``, or with the choices of ``hardest(own, captions)``.

    A rank has its own images and all captions. What is summed over the images of a caption is therefore a part on each
    rank: ``gather(part[None])`` has those of all ranks, and ``own`` the columns of this rank's captions.

    The similarities of ``tiles`` have a gradient, and autograd keeps each of them: only without gradient is the matrix
    never whole in memory. With it, run what reads a tile in ``torch.utils.checkpoint`` (see ``decoupled.py``).
    """

    images: Tensor
    """bool[B]: true for the n images of this rank that take part."""
    captions: Tensor
    """bool[C]: true for the captions of this rank that take part."""
    own: slice
    """The place of this rank's captions among the N captions of all ranks, which stand in rank order."""
    own_images: slice
    """The place of this rank's n images among those of all ranks that take part, in rank order."""
    image_of: Tensor
    """int64: for each of this rank's captions that take part its own image, a number below n."""
    labels: Labels
    """What decides which of the n images and N captions are positives."""
    false_texts: Labels
    """The same for the n images and the M texts of all ranks that are false of their own image, by equal texts alone:
    what is false of one image may be the caption of another."""

    @classmethod
    def of(cls, keys: Keys, positives: Positives) -> "Candidates":
        """The candidates for the ``keys`` of a rank. Gathers captions, so every rank has to call it."""
        images, captions = keys.has_caption, keys.has_image
        sizes = gather(torch.tensor([[len(images), int(captions.sum()), int(images.sum())]], device=images.device))
        first_image, first_caption, first_row = sizes[: rank()].sum(dim=0).tolist()
        own = slice(first_caption, first_caption + int(sizes[rank(), 1]))
        own_images = slice(first_row, first_row + int(sizes[rank(), 2]))
        index = keys.image_index[captions]
        image_of = (images.cumsum(0) - 1)[index]
        places = (images, captions, own, own_images, image_of)
        if positives == "own":
            # The label is the image's number among the images of all ranks, which only its own captions share.
            number = torch.arange(len(images), device=images.device)[images]
            labels = Labels(((number + first_image, gather(index + first_image)),))
            return cls(*places, labels, Labels(()))
        texts = gather(keys.caption_key[captions])
        # One label for each of an image's captions; see own_texts for images that have fewer than the most.
        own_keys = own_texts(index, keys.caption_key[captions], len(images))[images].T
        of_text = [(key, texts) for key in own_keys]
        false_texts = Labels(())
        if keys.negative is not None:
            false = gather(keys.caption_key[keys.negative])
            false_texts = Labels(tuple((key, false) for key in own_keys))
        if positives == "text":
            return cls(*places, Labels(tuple(of_text)), false_texts)
        of_concept = (keys.image_concept[images], gather(keys.caption_concept[captions]))
        return cls(*places, Labels((of_concept, *of_text)), false_texts)

    def positive(self, rows: slice, columns: slice) -> Tensor:
        """bool[r, c]: true for positives, with ``rows`` of the n images and ``columns`` of the N captions."""
        return self.labels.positive(rows, columns)

    def positive_with_false_texts(self, rows: slice, columns: slice) -> Tensor:
        """bool[r, c]: the same where ``columns`` are of N + M texts, the captions and then the ``false_texts``."""
        size = len(self.labels.pairs[0][1])
        true = self.positive(rows, slice(min(columns.start, size), min(columns.stop, size)))
        false = slice(max(columns.start - size, 0), max(columns.stop - size, 0))
        if not self.false_texts.pairs:  # positives: own
            return torch.cat([true, true.new_zeros(len(true), false.stop - false.start)], dim=1)
        return torch.cat([true, self.false_texts.positive(rows, false)], dim=1)

    def tiles(self, image: Tensor, text: Tensor, size: int = TILE) -> Iterator[Tile]:
        """The similarities of this rank's ``image`` float[n, E] and all ranks' ``text`` float[N, E], tile by tile."""
        for rows, columns in tiles(len(image), len(text), size):
            similarity = product(image[rows], text[columns].T)
            yield Tile(rows, columns, similarity, self.positive(rows, columns))

    @torch.no_grad()
    def hardest(self, image: Tensor, text: Tensor, size: int = TILE) -> tuple[Tensor, Tensor]:
        """The most similar negative of each image and of each caption of this rank, out of those of all ranks.

        Args:
            image: float[n, E], of this rank.
            text: float[N, E], of all ranks.
            size: rows and columns of a tile.

        Returns:
            int64[n], for each image a number of the N captions; and for each of this rank's captions that take part,
            int64, the number of an image among those of all ranks (as ``gather(image)`` has them). ``NONE`` stands for
            no negative at all. The first of equals is taken.

        Every rank has to call it. No gradient goes through the choice: the similarities of the pairs that were chosen
        are to be computed from the embeddings.
        """
        caption, best_caption = _none_yet(len(image), image)
        row, best_image = _none_yet(len(text), image)
        for tile in self.tiles(image, text, size):
            negative = tile.similarity.masked_fill(tile.positive, -math.inf)
            _keep_larger(caption, best_caption, tile.rows, tile.columns.start, *negative.max(dim=1))
            _keep_larger(row, best_image, tile.columns, self.own_images.start + tile.rows.start, *negative.max(dim=0))
        # Each rank knows the hardest of its own images for every caption: of these the hardest is taken.
        found, similarity = gather(row[None]), gather(best_image[None])
        chosen = found.take_along_dim(similarity.argmax(dim=0, keepdim=True), dim=0)[0]
        return caption, chosen[self.own]


def _none_yet(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The choices int64[count] of queries that have none, and their similarities float[count]."""
    return like.new_full((count,), NONE, dtype=torch.int64), like.new_full((count,), -math.inf)


def _keep_larger(chosen: Tensor, best: Tensor, place: slice, first: int, values: Tensor, index: Tensor) -> None:
    """Replaces, at ``place``, the choices that are less similar than ``values``; ``index`` counts from ``first``."""
    larger = values > best[place]
    chosen[place] = torch.where(larger, index + first, chosen[place])
    best[place] = torch.where(larger, values, best[place])
