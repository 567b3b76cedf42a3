"""Greedy decoding: the most likely token at every step, by the model's own key-value cache."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mmlm.data.tokenizer import Tokenizer
from mmlm.model.model import ImageFeatures, ImageTextModel

FeaturesT = TypeVar("FeaturesT", contravariant=True)
CacheT = TypeVar("CacheT")


class CaptionDecoder(Protocol[FeaturesT, CacheT]):
    """The interface that decoding needs of a model, which alone knows what its features and its cache hold."""

    def start_decoding(self, features: FeaturesT) -> CacheT:
        """An empty cache for the B images of ``features`` (cross-attention keys and values are made here, once)."""
        ...

    def decode(self, tokens: Tensor, cache: CacheT) -> Tensor:
        """float[B, t, V]: logits after each of ``tokens`` int64[B, t], the next t of every row. Advances the cache."""
        ...


@dataclass(frozen=True)
class Written:
    """Captions as token ids, with their probabilities."""

    tokens: Tensor
    """int64[B, t]: the tokens after the start, the end token included where it was reached, then padding."""
    log_probabilities: Tensor
    """float64[B, t]: the natural logarithm of each token's probability after those before it; 0 at padding."""


@torch.no_grad()
def write_captions(
    model: ImageTextModel, tokenizer: Tokenizer, features: ImageFeatures, start_id: int, max_tokens: int
) -> list[str]:
    """A greedy caption of each of the B images of ``features``, in order.

    ``start_id`` is the first token of the language to write in (``tokenizer.start_id(language)``); ``max_tokens`` is as
    for ``greedy``. The caller puts the model, which has a decoder, in evaluation mode.
    """
    start_ids = repeated_start(features, start_id)
    written = greedy(model, features, start_ids, tokenizer.end_id, tokenizer.pad_id, max_tokens)
    return [tokenizer.decode(row) for row in written.tokens.tolist()]


def repeated_start(features: ImageFeatures, start_id: int) -> Tensor:
    """int64[B]: ``start_id`` for each of the B images of ``features``."""
    embedding = features.embedding
    return torch.full((len(embedding),), start_id, dtype=torch.int64, device=embedding.device)


@torch.no_grad()
def greedy(
    model: CaptionDecoder[FeaturesT, CacheT],
    features: FeaturesT,
    start_ids: Tensor,
    end_id: int,
    pad_id: int,
    max_tokens: int,
) -> Written:
    """The caption of each row of ``features``; ``pad_id`` stands behind its end.

    ``start_ids`` int64[B] is each row's first token (its language's start). ``max_tokens`` bounds the whole caption
    as a tokenizer's ``encode`` counts it, start and end included, so that decoding never reaches a position that
    training has not seen: 1 <= t <= max_tokens - 1. Decoding stops as soon as every row has ended; a row that has ended
    is fed ``pad_id``, which changes nothing for the other rows. The caller puts the model in evaluation mode.

    Raises ValueError if ``start_ids`` is not int64[B] or ``max_tokens`` is below 2.
    """
    if start_ids.ndim != 1 or start_ids.dtype != torch.int64:
        raise ValueError(f"start_ids {start_ids.dtype}{list(start_ids.shape)} must be int64[B], one start token a row")
    if max_tokens < 2:
        raise ValueError(f"max_tokens {max_tokens} must be at least 2: it counts the start token and one more")
    cache = model.start_decoding(features)
    newest = start_ids
    finished = torch.zeros_like(start_ids, dtype=torch.bool)
    generated: list[Tensor] = []
    likelihoods: list[Tensor] = []
    for _ in range(max_tokens - 1):
        logits = model.decode(newest[:, None], cache)[:, -1].double()
        highest, best = logits.max(dim=-1)
        newest = best.masked_fill(finished, pad_id)
        generated.append(newest)
        likelihoods.append((highest - logits.logsumexp(dim=-1)).masked_fill(finished, 0))
        finished = finished | (newest == end_id)
        if finished.all():
            break
    return Written(torch.stack(generated, dim=1), torch.stack(likelihoods, dim=1))
