"""The batch that parts are tried on, and the ways to hand it out that must not change a result.

Captions of unequal lengths, several of one image, an image without any, captions without an image.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from mmlm.core.batch import TEXT_ONLY, Batch, Caption

PAD, START, END = 0, 1, 2
VOCABULARY = 17
"""Number of token ids of the batch, with padding, start and end."""
TOKENS = 8
"""T, the length of the longest caption."""

Shares = Sequence[int]
"""Number of images of each rank, in the order of the ranks."""


def whole_batch(pixels: int) -> Batch:
    """Eight images of ``pixels`` a side and thirteen captions of unequal lengths.

    Several captions an image, one image without any, two text-only captions; equal concepts and equal texts stand far
    apart, so that they end up in different micro-batches and on different ranks.
    """
    generator = torch.Generator().manual_seed(1)
    index = (0, 0, 1, 2, TEXT_ONLY, 3, 3, 4, 5, TEXT_ONLY, 7, 7, 4)
    lengths = (3, 8, 2, 4, 5, 7, 3, 6, 6, 8, 4, 5, 3)
    keys = (10, 11, 12, 13, 14, 15, 11, 16, 17, 18, 19, 20, 13)
    tokens = torch.randint(3, VOCABULARY, (len(index), TOKENS), generator=generator)
    tokens[:, 0] = START
    # No two texts have the same tokens: their embeddings would tie, and rounding alone would decide an accuracy.
    tokens[12, 1] = 3 + (tokens[0, 1] - 2) % (VOCABULARY - 3)
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = END
        tokens[row, length:] = PAD
    concept = torch.tensor([1, 2, 3, 4, 5, 1, 6, 3])
    image_index = torch.tensor(index)
    captioned = torch.where(image_index == TEXT_ONLY, 99, concept[image_index])
    return Batch(
        images=torch.randint(0, 256, (8, 3, pixels, pixels), generator=generator, dtype=torch.uint8),
        tokens=tokens,
        lengths=torch.tensor(lengths),
        image_index=image_index,
        image_concept=concept,
        caption_concept=captioned,
        caption_key=torch.tensor(keys),
        ids=tuple(f"image{i}" for i in range(8)),
        captions=tuple(Caption(str(key)) for key in keys),
    )


def share_of(batch: Batch, rank: int, shares: Shares) -> Batch:
    """The part of ``batch`` that a rank holds: its images with their captions.

    Of two text-only captions, rank 0 has the first and the last rank the second.
    """
    first, text_only = sum(shares[:rank]), (batch.image_index == TEXT_ONLY).nonzero().squeeze(1).tolist()
    rows = range(first, first + shares[rank])
    own = {text_only[0]: 0, text_only[1]: len(shares) - 1}
    chosen = torch.tensor(
        [own[c] == rank if c in own else int(i) in rows for c, i in enumerate(batch.image_index.tolist())]
    )
    return batch._part(rows, chosen)


def shuffled(batch: Batch) -> Batch:
    """The same batch with its images and captions in another order."""
    images, captions = torch.arange(len(batch.images)).flip(0), torch.arange(len(batch.lengths)).roll(3)
    place = torch.empty_like(images)
    place[images] = torch.arange(len(images))
    index = batch.image_index[captions]
    return replace(
        batch,
        images=batch.images[images],
        image_concept=batch.image_concept[images],
        ids=tuple(batch.ids[i] for i in images.tolist()),
        tokens=batch.tokens[captions],
        lengths=batch.lengths[captions],
        caption_concept=batch.caption_concept[captions],
        caption_key=batch.caption_key[captions],
        captions=tuple(batch.captions[c] for c in captions.tolist()),
        image_index=torch.where(index == TEXT_ONLY, index, place[index]),
        compared=None if batch.compared is None else batch.compared[captions],
        predicted=None if batch.predicted is None else batch.predicted[captions],
        trained=None if batch.trained is None else batch.trained[captions],
        negative=None if batch.negative is None else batch.negative[captions],
    )


def with_more_padding(batch: Batch, columns: int = 3) -> Batch:
    """The same batch with that many columns of padding more."""
    trained = None if batch.trained is None else F.pad(batch.trained, (0, columns), value=False)
    return replace(batch, tokens=F.pad(batch.tokens, (0, columns), value=PAD), trained=trained)
