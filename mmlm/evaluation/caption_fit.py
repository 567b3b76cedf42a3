"""How well the captions of training data fit their images, as a checkpoint of a run on them sees it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Caption, Example
from mmlm.core.keyed_random import keyed_order
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.look import Look, look_of
from mmlm.data.sources import Source, reduced_example
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.pairs import positive_pairs
from mmlm.evaluation.perplexity import caption_nats
from mmlm.evaluation.split import EncodedSplit, encode_split
from mmlm.model.model import ImageTextModel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shuffled:
    """All examples of a source in a random order that is always the same: neighbours in a file are often alike."""

    source: Source
    places: dict[str, int] = field(default_factory=dict)
    """Id -> index in ``source`` of every example that has been read."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``ReadsReduced``."""
        place = int(keyed_order(0, 0, len(self.source), torch.tensor([index])))
        example = reduced_example(self.source, place, at_least)
        self.places[example.id] = place
        return example

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return self.source.captions()


@dataclass(frozen=True)
class CaptionFit:
    """What one checkpoint makes of the n captions that have an image, in the order of the batches."""

    step: int
    ids: tuple[str, ...]
    """The example of each caption, n in all."""
    captions: tuple[str, ...]
    tokens: Floats
    """float64[n]: tokens that are predicted, the end included."""
    loss: Floats
    """float64[n]: nats of the whole caption, given its image; NaN if the model has no decoder."""
    margin: Floats
    """float64[n]: see ``margins`` and ``gains``; NaN where a batch has nothing to compare with."""
    looks: dict[str, Look]
    """How the image of each id looks, as the model sees it."""


def caption_fit(
    step: int,
    model: ImageTextModel,
    tokenizer: Tokenizer,
    batches: EvaluationBatches,
    device: torch.device,
    max_tokens: int,
    compares: bool,
    tell: Callable[[str], None],
) -> CaptionFit:
    """Scores every caption, a batch at a time, so that memory is that of one batch.

    ``compares`` says whether the run has learned similarities: the margin is one of similarities then, else of
    likelihoods, for which the model has a decoder. Raises UserError where no image can be read.
    """
    ids: list[str] = []
    captions: list[str] = []
    columns: list[Tensor] = []
    looks: dict[str, Look] = {}
    for number in range(len(batches)):
        tell(f"step {step}, batch {number + 1:,} of {len(batches):,}")
        batch = batches[number]
        own = (batch.image_index != TEXT_ONLY).nonzero().squeeze(1)
        if not len(own):
            continue
        looks |= {id: look_of(image) for id, image in zip(batch.ids, batch.images, strict=True)}
        split = encode_split("train", model, tokenizer, [batch], device, max_tokens)
        loss = torch.full((len(batch.captions),), torch.nan) if model.decoder is None else caption_nats(split)
        margin = margins(split) if compares else gains(split, loss)
        columns.append(torch.stack([batch.lengths.double() - 1, loss.double(), margin.double()], dim=1)[own])
        ids += [batch.ids[batch.image_index[row]] for row in own.tolist()]
        captions += [batch.captions[row].text for row in own.tolist()]
    tokens, losses, found = torch.cat([torch.zeros(0, 3, dtype=torch.float64), *columns]).numpy().T
    return CaptionFit(step, tuple(ids), tuple(captions), tokens, losses, found, looks)


def margins(split: EncodedSplit) -> Tensor:
    """float64[C], on the CPU: the similarity of each caption to its image, less that of the best text of another.

    It is the margin of arXiv:2001.10528, with the texts of the batch as classes; ``positive_pairs`` says which are an
    image's own. (Other images of the caption are not compared with: one that is captioned wrong would be nearer to the
    text it lacks than the right ones.) NaN for a caption without an image, or if there is no other text.
    """
    text = torch.cat([item.text_embedding for item in split.batches]).double().cpu()
    similarity = split.image_embedding.double().cpu() @ text.T  # float64[B, C], of one batch
    index = split.image_index.cpu()
    key = torch.cat([item.batch.caption_key for item in split.batches])
    pairs = positive_pairs(split.image_concept, split.caption_concept, key, index)
    wrong = similarity.clone()
    wrong[pairs[:, 0], pairs[:, 1]] = -torch.inf
    own = similarity[index, torch.arange(len(index))]
    best = wrong.amax(dim=1)[index]
    return torch.where((index == TEXT_ONLY) | best.isinf(), torch.nan, own - best)


def gains(split: EncodedSplit, loss: Tensor) -> Tensor:
    """float64[C], on the CPU: nats by which a caption (of ``loss``) is likelier with its image than with the next one.

    NaN for a caption without an image, and where there is but one image.
    """
    images = len(split.image_ids)
    if images < 2:
        return torch.full_like(loss, torch.nan)
    other = caption_nats(split.with_images_of(torch.arange(images).roll(-1)))
    return torch.where(split.image_index.cpu() == TEXT_ONLY, torch.nan, other - loss)
