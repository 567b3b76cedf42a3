"""The captions that a model writes of a split, once for all who score or show them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.evaluation.generation.captions import write_captions
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.split import EncodedBatch, EncodedSplit

GREEDY = GenerationSettings()
"""The decoding of scores for which nothing else is set."""


@runtime_checkable
class Captioning(Protocol):
    """An evaluator that scores what the model writes."""

    decoding: GenerationSettings
    """How captions are written."""

    def with_decoding(self, decoding: GenerationSettings) -> Self:
        """The same evaluator of captions that are written otherwise."""
        ...


@dataclass(frozen=True)
class WrittenCaptions:
    """A caption of each of the n images that have a reference in the language."""

    rows: list[int]
    """The images, in the split."""
    ids: list[str]
    concept: Tensor
    """int64[n], on the CPU."""
    captions: list[str]
    truths: list[list[Caption]]
    """The references of each, one at least."""

    @property
    def references(self) -> list[list[str]]:
        """Their texts."""
        return [[truth.text for truth in truths] for truths in self.truths]


def written_captions(split: EncodedSplit, language: str | None, decoding: GenerationSettings) -> WrittenCaptions:
    """What the model writes of the images that can be scored; all ranks call it. UserError where there is none."""
    generated = generate_captions(split, language, decoding)
    truths = [[text for text in texts if language in (None, text.language)] for texts in split.references]
    rows = [row for row, texts in enumerate(truths) if texts]
    if not rows:
        which = "" if language is None else f" in '{language}'"
        raise UserError(f"no image of the split '{split.name}' has a caption{which}")
    return WrittenCaptions(
        rows,
        [split.image_ids[row] for row in rows],
        split.image_concept.cpu()[rows],
        [generated[row] for row in rows],
        [truths[row] for row in rows],
    )


def scored_decoding(decoding: GenerationSettings | None, language: str | None) -> GenerationSettings:
    """The decoding of captions that are scored in a language; greedy for None.

    Raises ArgumentError for several captions an image, of which one only would be scored, or another language.
    """
    chosen = GREEDY if decoding is None else decoding
    if chosen.n > 1:
        raise ArgumentError(f"decoding.n: {chosen.n} must be 1: one caption of each image is scored")
    if chosen.language not in (None, language):
        raise ArgumentError(
            f"decoding.language: '{chosen.language}' is not the language that captions are scored in, "
            f"{'any' if language is None else repr(language)}; leave it out"
        )
    return chosen


@torch.no_grad()
def generate_captions(split: EncodedSplit, language: str | None, decoding: GenerationSettings = GREEDY) -> list[str]:
    """The best caption of every image of the split, in order. All ranks call it, and get the same captions.

    They are written once for each language and decoding, and kept: scores, samples and items of a split are about the
    same captions.
    """
    known = (language, decoding.in_words)
    if known in split.written:
        return split.written[known]
    settings = replace(decoding, language=language)

    def of_batch(item: EncodedBatch) -> list[str]:
        keys = item.batch.image_key
        written = write_captions(split.model, split.tokenizer, item.features, settings, keys, split.max_tokens)
        return [of_image[0].text for of_image in written]

    split.written[known] = list(chain.from_iterable(split.over_batches(of_batch)))
    return split.written[known]


def shown_decoding(evaluators: Mapping[str, object]) -> GenerationSettings:
    """How the captions are written that samples and items show: as those that are scored, or else greedily."""
    return next((one.decoding for one in evaluators.values() if isinstance(one, Captioning)), GREEDY)
