"""What captions cost as tokens: their lengths, how many are cut, and how much of a batch is padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmlm.core.keyed_random import keyed_order
from mmlm.data.collate import DEFAULT_BUCKET


@dataclass(frozen=True)
class TokenCosts:
    """Of the captions of a data set, one drawn for each example, in batches of random order."""

    tokens: int
    """Of all captions, start and end included, before any is cut."""
    median: int
    longest: int
    cut: int
    """Captions that are longer than the model reads."""
    lost: int
    """Tokens that these captions lose."""
    padding: float
    """The share of a batch's tokens that are padding, 0 to 1, where captions are padded and not packed."""


def token_costs(
    lengths: Sequence[int], max_tokens: int, batch_size: int = 128, bucket: int = DEFAULT_BUCKET
) -> TokenCosts:
    """The costs of captions of ``lengths`` (tokens, start and end included, uncut; at least one of them)."""
    whole = torch.tensor(lengths)
    read = whole.clamp(max=max_tokens)
    order = keyed_order(0, 0, len(read), torch.arange(len(read)))
    real = padded = 0
    for batch in read[order].split(batch_size):
        width = min(max_tokens, -(-int(batch.max()) // bucket) * bucket)
        real += int(batch.sum())
        padded += width * len(batch)
    return TokenCosts(
        tokens=int(whole.sum()),
        median=int(whole.median()),
        longest=int(whole.max()),
        cut=int((whole > max_tokens).sum()),
        lost=int((whole - read).sum()),
        padding=1 - real / padded,
    )
