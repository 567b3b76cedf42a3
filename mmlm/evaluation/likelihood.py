"""How probable a captioner finds texts: scores of images and texts beside the similarity of their embeddings.

A text that is probable whatever the image shows scores high with every image. ``text_priors`` is how probable it is on
the whole, and a likelihood less it says how much the image speaks for the text (VisualGPTScore, arXiv:2306.01879).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmlm.core.batch import Caption, Example
from mmlm.data.collate import DEFAULT_BUCKET, Prepared, caption_encoder, collate
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from mmlm.objectives.kernels.linear_cross_entropy import token_losses

PAIRS_AT_ONCE = 256
"""Texts of one pass of the decoder."""
WEIGHTS = tuple(step / 10 for step in range(11))
"""What a weight of the likelihood in a blend is chosen from."""


@torch.no_grad()
def log_likelihoods(
    split: EncodedSplit, images: Tensor, texts: Sequence[str], chosen: Tensor, language: str | None
) -> Tensor:
    """float64[P]: the natural logarithm of the probability of text ``texts[chosen[p]]``, given image ``images[p]``.

    ``images`` int64[P] are rows of the split and ``chosen`` int64[P] places in ``texts``. It is a sum over the text's
    tokens, the end included; a text of more than the split's ``max_tokens`` loses its tail. Each rank computes the
    pairs of its own images, and all get every value; a value does not depend on the other pairs. The model has a
    decoder.
    """
    images, chosen = images.cpu(), chosen.cpu()
    encode = caption_encoder(split.tokenizer, split.max_tokens)
    found = torch.zeros(len(images), dtype=torch.float64)
    places: list[Tensor] = []

    def of_pairs(item: EncodedBatch, own: Tensor) -> Tensor:
        # The way of every caption into a batch: padding and truncation are defined there only.
        examples = tuple(Example("", None, (Caption(texts[text], language),)) for text in chosen[own].tolist())
        no_images = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        prepared = Prepared(no_images, examples, (None,) * len(examples), ())
        batch = collate(prepared, encode, split.tokenizer.pad_id, split.max_tokens, DEFAULT_BUCKET)
        batch.image_index.copy_(images[own] - item.first)
        batch = batch.to(split.device)
        hidden = split.model.caption_hidden(item.features, batch)
        assert split.model.decoder is not None, "whoever asks for likelihoods has checked that there is a decoder"
        losses = token_losses(hidden, split.model.decoder.head_weight, batch.targets[batch.target_mask]).double()
        counts = batch.lengths - 1
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return losses.new_zeros(len(counts)).index_add(0, rows, -losses)

    def pairs_of(item: EncodedBatch) -> Tensor:
        return ((images >= item.first) & (images < item.rows.stop)).nonzero().squeeze(1)

    def of_batch(item: EncodedBatch) -> Tensor:
        parts = [of_pairs(item, own) for own in pairs_of(item).split(PAIRS_AT_ONCE) if len(own)]
        return torch.cat([torch.zeros(0, dtype=torch.float64, device=split.device), *parts])

    values = split.over_batches(of_batch)
    places = [pairs_of(item) for item in split.batches]
    found[torch.cat(places)] = torch.cat(values).cpu()
    return found


def text_priors(split: EncodedSplit, texts: Sequence[str], language: str | None, images: Sequence[int]) -> Tensor:
    """float64[C]: the logarithm of each text's mean probability given the ``images`` (rows of the split)."""
    rows = torch.tensor(images, dtype=torch.int64).repeat_interleave(len(texts))
    chosen = torch.arange(len(texts)).repeat(len(images))
    each = log_likelihoods(split, rows, texts, chosen, language).view(len(images), len(texts))
    return each.logsumexp(dim=0) - torch.tensor(len(images), dtype=torch.float64).log()


def blended(embedding: Tensor, likelihood: Tensor, weight: float, scales: tuple[float, float]) -> Tensor:
    """The weighted sum of two scores of the same pairs, each divided by its scale first; ``weight`` is the second's."""
    return (1 - weight) * embedding / scales[0] + weight * likelihood / scales[1]


def choose_weight(score: Callable[[float], float]) -> float:
    """The weight out of ``WEIGHTS`` with the highest ``score``; of equal ones that which is nearest to a half.

    ``score`` has to be taken of other items than those that the weight is used for: of a validation split, or of one
    half of a split for the other.
    """
    return max(WEIGHTS, key=lambda weight: (score(weight), -abs(weight - 0.5)))
