"""A small batch of captions and images, made to order."""

from collections.abc import Callable, Sequence

import pytest
import torch

from mmlm.core.batch import Batch, Caption

PAD, START, END = 0, 1, 2


def build_batch(
    lengths: Sequence[int] = (5, 3, 7, 4, 3),
    image_index: Sequence[int] = (0, 1, 1, 2, 0),
    num_images: int = 3,
    num_tokens: int = 8,
    vocab_size: int = 13,
    image_size: int = 16,
    seed: int = 0,
) -> Batch:
    """Random tokens after the start and before the end, random pixels."""
    generator = torch.Generator().manual_seed(seed)
    count = len(lengths)
    tokens = torch.randint(3, vocab_size, (count, num_tokens), generator=generator)
    tokens[:, 0] = START
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = END
        tokens[row, length:] = PAD
    return Batch(
        images=torch.randint(0, 256, (num_images, 3, image_size, image_size), generator=generator, dtype=torch.uint8),
        tokens=tokens,
        lengths=torch.tensor(lengths, dtype=torch.int64),
        image_index=torch.tensor(image_index, dtype=torch.int64),
        image_concept=torch.arange(num_images),
        caption_concept=torch.tensor(image_index, dtype=torch.int64),
        caption_key=torch.arange(count),
        ids=tuple(f"image{i}" for i in range(num_images)),
        captions=tuple(Caption(f"caption{i}") for i in range(count)),
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``build_batch``."""
    return build_batch
