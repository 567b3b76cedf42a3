"""An evaluation split as the model sees it: every image and caption encoded once, shared by all evaluators."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmlm.data.tokenizer import Tokenizer
from mmlm.errors import UserError
from mmlm.evaluation.retrieval import merge_equal_captions, positive_pairs
from mmlm.flow import TEXT_ONLY, Batch, Caption
from mmlm.model.model import ImageFeatures, ImageTextModel


@dataclass(frozen=True)
class EncodedBatch:
    """A batch with what the model made of it, on the model's device."""

    batch: Batch
    features: ImageFeatures
    text_embedding: Tensor
    """float32[C, E], unit length."""


@dataclass(frozen=True)
class Gallery:
    """Images and distinct texts to retrieve among, and which belong together."""

    image_embedding: Tensor
    """float32[B, E]."""
    text_embedding: Tensor
    """float32[K, E], one row a distinct text."""
    pairs: Tensor
    """int64[P, 2]: (image row, text row)."""
    texts: tuple[str, ...]
    """K texts."""


@dataclass(frozen=True)
class EncodedSplit:
    """All batches of a split. Rows of images and captions count through the batches in order."""

    name: str
    model: ImageTextModel
    tokenizer: Tokenizer
    max_tokens: int
    batches: tuple[EncodedBatch, ...]

    @cached_property
    def features(self) -> ImageFeatures:
        """Embeddings float32[B, E] and, with a decoder, memory float[B, M, Dm] of all images."""
        memories = [b.features.memory for b in self.batches if b.features.memory is not None]
        return ImageFeatures(
            torch.cat([b.features.embedding for b in self.batches]),
            torch.cat(memories) if memories else None,
        )

    @cached_property
    def image_index(self) -> Tensor:
        """int64[C]: the image row of each caption, or ``TEXT_ONLY``."""
        shifted, first = [], 0
        for item in self.batches:
            index = item.batch.image_index
            shifted.append(torch.where(index == TEXT_ONLY, index, index + first))
            first += len(item.batch.images)
        return torch.cat(shifted)

    @cached_property
    def image_concept(self) -> Tensor:
        """int64[B]."""
        return torch.cat([b.batch.image_concept for b in self.batches])

    @cached_property
    def captions(self) -> tuple[Caption, ...]:
        """All C captions."""
        return tuple(caption for b in self.batches for caption in b.batch.captions)

    @cached_property
    def references(self) -> list[list[Caption]]:
        """The captions of each image, B lists."""
        found: list[list[Caption]] = [[] for _ in range(len(self.image_concept))]
        for caption, row in zip(self.captions, self.image_index.tolist(), strict=True):
            if row != TEXT_ONLY:
                found[row].append(caption)
        return found

    @cached_property
    def gallery(self) -> Gallery:
        """Images and distinct texts. Captions that read the same are one text, so that a wrong one counts once."""
        caption_concept = torch.cat([b.batch.caption_concept for b in self.batches])
        caption_key = torch.cat([b.batch.caption_key for b in self.batches])
        pairs = positive_pairs(self.image_concept, caption_concept, caption_key, self.image_index)
        kept, pairs = merge_equal_captions(pairs, caption_key)
        text_embedding = torch.cat([b.text_embedding for b in self.batches])
        return Gallery(
            image_embedding=self.features.embedding,
            text_embedding=text_embedding[kept.to(text_embedding.device)],
            pairs=pairs,
            texts=tuple(self.captions[row].text for row in kept.tolist()),
        )

    def image(self, row: int) -> Tensor:
        """uint8[3, S, S] of an image row, on the CPU."""
        first = 0
        for item in self.batches:
            if row < first + len(item.batch.images):
                return item.batch.images[row - first].cpu()
            first += len(item.batch.images)
        raise IndexError(f"image row {row} is beyond the split's last")

    def image_ids(self) -> Iterator[str]:
        """The example id of each image, in order."""
        for item in self.batches:
            yield from item.batch.ids


@torch.no_grad()
def encode_split(
    name: str,
    model: ImageTextModel,
    tokenizer: Tokenizer,
    batches: Iterable[Batch],
    device: torch.device,
    max_tokens: int,
) -> EncodedSplit:
    """Encodes every batch. The caller puts the model in eval mode. Raises UserError for an empty split."""
    encoded = []
    for batch in batches:
        batch = batch.to(device)
        features = model.encode_image(batch.images)
        encoded.append(EncodedBatch(batch, features, model.encode_text(batch.tokens, batch.lengths)))
    if not encoded:
        raise UserError(f"evaluation split '{name}' has no image that can be decoded")
    return EncodedSplit(name, model, tokenizer, max_tokens, tuple(encoded))
