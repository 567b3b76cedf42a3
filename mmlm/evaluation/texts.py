"""Texts of an evaluator's own, embedded as the captions of a split are; and the texts that are known of a concept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.batch import Caption, Example
from mmlm.core.distributed import gather_results, rank, world_size
from mmlm.data.collate import DEFAULT_BUCKET, Prepared, caption_encoder, collate
from mmlm.data.tokenizer import Tokenizer
from mmlm.model.model import ImageTextModel

TEXTS_AT_ONCE = 256
"""Texts of one pass of the text encoder."""


@dataclass(frozen=True)
class Concept:
    """What the images of a split with one positives key show."""

    key: int
    """The positives key, as in ``Batch.image_concept``."""
    texts: tuple[Caption, ...]
    """The distinct captions of the concept's images, and texts without an image that belong to it, in order of
    appearance, without answers to a source; empty if its images have no caption."""


def concepts_of(image_concept: Tensor, caption_concept: Tensor, captions: Sequence[Caption]) -> tuple[Concept, ...]:
    """The distinct concepts of int64[B] ``image_concept``, in order of appearance.

    ``caption_concept`` int64[C] is that of each of ``captions``.
    """
    texts: dict[int, dict[Caption, None]] = {key: {} for key in image_concept.tolist()}
    for key, caption in zip(caption_concept.tolist(), captions, strict=True):
        if key in texts and caption.source is None:
            texts[key][caption] = None
    return tuple(Concept(key, tuple(of_concept)) for key, of_concept in texts.items())


@torch.no_grad()
def embed_texts(
    model: ImageTextModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    language: str | None,
    max_tokens: int,
    device: torch.device,
) -> Tensor:
    """float32[n, E], unit length: the texts as the model embeds captions of that language.

    A text of more than ``max_tokens`` loses its tail. Ranks share the work, so all of them call it, with the same
    texts; all get every embedding, the same for any number of ranks. It computes in the precision of the caller.
    """
    if not texts:
        return torch.zeros(0, model.sizes.embedding_width, device=device)
    encode = caption_encoder(tokenizer, max_tokens)
    no_images = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)

    def embedded(part: Sequence[str]) -> Tensor:
        # The way of every caption into a batch: padding and truncation are defined there only.
        examples = tuple(Example("", None, (Caption(text, language),)) for text in part)
        prepared = Prepared(no_images, examples, (None,) * len(part), ())
        batch = collate(prepared, encode, tokenizer.pad_id, max_tokens, DEFAULT_BUCKET).to(device)
        return model.encode_text(batch.tokens, batch.lengths)

    return in_parts(texts, embedded, device)


def in_parts(texts: Sequence[str], embedded: Callable[[Sequence[str]], Tensor], device: torch.device) -> Tensor:
    """float[n, E] on ``device``: what ``embedded`` makes of texts, one at least. Ranks share the work.

    All ranks call it with the same texts, and get every row.
    """
    starts = range(0, len(texts), TEXTS_AT_ONCE)

    def own() -> dict[int, Tensor]:
        mine = [start for number, start in enumerate(starts) if number % world_size() == rank()]
        # By way of the CPU: another rank cannot read this one's device.
        return {start: embedded(texts[start : start + TEXTS_AT_ONCE]).cpu() for start in mine}

    every = {start: part for parts in gather_results(own) for start, part in parts.items()}
    return torch.cat([every[start] for start in starts]).to(device)
