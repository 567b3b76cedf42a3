"""Greedy decoding: the most likely token at every step, by the model's own key-value cache."""

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


@torch.no_grad()
def write_captions(
    model: ImageTextModel, tokenizer: Tokenizer, features: ImageFeatures, start_id: int, max_tokens: int
) -> list[str]:
    """A greedy caption of each of the B images of ``features``, in order.

    ``start_id`` is the first token of the language to write in (``tokenizer.start_id(language)``); ``max_tokens`` is as
    for ``greedy``. The caller puts the model, which has a decoder, in evaluation mode.
    """
    embedding = features.embedding
    start_ids = torch.full((len(embedding),), start_id, dtype=torch.int64, device=embedding.device)
    tokens = greedy(model, features, start_ids, tokenizer.end_id, tokenizer.pad_id, max_tokens)
    return [tokenizer.decode(row) for row in tokens.tolist()]


@torch.no_grad()
def greedy(
    model: CaptionDecoder[FeaturesT, CacheT],
    features: FeaturesT,
    start_ids: Tensor,
    end_id: int,
    pad_id: int,
    max_tokens: int,
) -> Tensor:
    """int64[B, t]: the tokens after the start, the end token included where it was reached, then ``pad_id``.

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
    for _ in range(max_tokens - 1):
        logits = model.decode(newest[:, None], cache)
        newest = logits[:, -1].argmax(dim=-1).masked_fill(finished, pad_id)
        generated.append(newest)
        finished = finished | (newest == end_id)
        if finished.all():
            break
    return torch.stack(generated, dim=1)
