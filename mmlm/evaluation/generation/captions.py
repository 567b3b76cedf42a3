"""Captions in words: what a tokenizer and a model make of the settings, and the order of several captions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmlm.core.errors import ArgumentError
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.generation.generate import generate
from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.generation.task import Hypothesis, Task
from mmlm.model.model import ImageFeatures, ImageTextModel


@dataclass(frozen=True)
class Written:
    """A caption that a model has written."""

    text: str
    """The prompt included."""
    hypothesis: Hypothesis
    """Its tokens behind the prompt."""
    similarity: float | None = None
    """The cosine of image and text by the model's embeddings, if captions were ordered by it."""

    @property
    def score(self) -> float:
        """What the captions of an image are ordered by, the highest first."""
        return self.hypothesis.score if self.similarity is None else self.similarity


@torch.no_grad()
def write_captions(
    model: ImageTextModel,
    tokenizer: Tokenizer,
    features: ImageFeatures,
    settings: GenerationSettings,
    keys: Tensor,
    max_tokens: int,
    language: str | None = None,
) -> list[list[Written]]:
    """The captions of each of the B images of ``features``: ``settings.n`` of each, the highest score first.

    Args:
        model: with a decoder, in evaluation mode.
        tokenizer: the model's.
        features: of the images.
        settings: how to decode.
        keys: int64[B], what an image's samples are keyed by, such as ``Batch.image_key`` or ``pixel_keys``.
        max_tokens: the longest caption that the model reads, start and end included.
        language: the model's own, where ``settings`` names none.

    Raises:
        UserError: a language that the tokenizer lacks, or a prompt or a length that the model has no room for.
    """
    language = settings.language or language
    task = task_of(tokenizer, settings, keys.to(features.embedding.device), max_tokens, language)
    found = generate(model, features, task, settings)
    written = [[Written(tokenizer.decode([*task.first, *one.tokens]), one) for one in of_image] for of_image in found]
    if settings.rerank is not None:
        written = by_similarity(model, tokenizer, features, written, max_tokens, language)
    return [of_image[: settings.n] for of_image in written]


def task_of(
    tokenizer: Tokenizer, settings: GenerationSettings, keys: Tensor, max_tokens: int, language: str | None
) -> Task:
    """What ``settings`` mean in tokens. ``keys`` int64[B] is on the model's device. Raises as ``write_captions``."""
    longest = max_tokens if settings.max_tokens is None else settings.max_tokens
    if longest > max_tokens:
        raise ArgumentError(f"max_tokens: {longest} is more than the model reads, {max_tokens}; lower it")
    if settings.min_tokens > longest:
        raise ArgumentError(f"min_tokens: {settings.min_tokens} must be at most {longest}, the longest caption")
    first = [tokenizer.start_id(language)]
    if settings.prompt is not None:
        first = tokenizer.encode(settings.prompt, language, longest + 1)[:-1]
        if len(first) >= longest:
            raise ArgumentError(
                f"prompt: its {len(first) - 1} tokens and the start leave no room in captions of {longest}; shorten it"
            )
    runs = [run for text in settings.forbidden for run in _runs(tokenizer, text, language)]
    rules = LogitRules(
        tokenizer.end_id,
        settings.min_tokens,
        settings.repetition_penalty,
        settings.no_repeat_ngram,
        tuple(dict.fromkeys(runs)),
    )
    return Task(keys, tuple(first), tokenizer.end_id, longest, rules)


def check_settings(tokenizer: Tokenizer, settings: GenerationSettings, max_tokens: int, language: str | None) -> None:
    """Raises what ``write_captions`` would of the settings, before there is an image."""
    task_of(tokenizer, settings, torch.zeros(0, dtype=torch.int64), max_tokens, settings.language or language)


_ANY_WORD = "a"
"""A word to put before another, whose tokens may differ inside of a text."""
_LONG = 10_000
"""Tokens that no forbidden text has."""


def _runs(tokenizer: Tokenizer, text: str, language: str | None) -> list[tuple[int, ...]]:
    """The tokens of ``text`` at the beginning of a caption, and behind a word. ArgumentError if there are none."""
    at_start, before = (tokenizer.encode(words, language, _LONG)[1:-1] for words in (text, _ANY_WORD))
    inside = tokenizer.encode(f"{_ANY_WORD} {text}", language, _LONG)[1:-1]
    runs = [at_start]
    if inside[: len(before)] == before:
        runs.append(inside[len(before) :])
    found = [tuple(run) for run in runs if run]
    if not found:
        raise ArgumentError(f"forbidden: '{text}' has no token in this model's vocabulary; leave it out")
    return found


def by_similarity(
    model: ImageTextModel,
    tokenizer: Tokenizer,
    features: ImageFeatures,
    written: Sequence[Sequence[Written]],
    max_tokens: int,
    language: str | None,
) -> list[list[Written]]:
    """The captions of each image in the order of their similarity to it (CoCa, arXiv:2205.01917), the highest first.

    A text is embedded as a caption of a data set is: its tokens are those that the tokenizer makes of it.
    """
    device = features.embedding.device
    texts = [one.text for of_image in written for one in of_image]
    if not texts:
        return [list(of_image) for of_image in written]
    ids = [torch.tensor(tokenizer.encode(text, language, max_tokens)) for text in texts]
    tokens = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id).to(device)
    embedded = model.encode_text(tokens, torch.tensor([len(row) for row in ids], device=device))
    image = torch.arange(len(written)).repeat_interleave(torch.tensor([len(of_image) for of_image in written]))
    cosines = iter((features.embedding[image.to(device)].double() * embedded.double()).sum(dim=1).tolist())
    compared = [[Written(one.text, one.hypothesis, next(cosines)) for one in of_image] for of_image in written]
    return [sorted(of_image, key=lambda one: -one.score) for of_image in compared]


def pixel_keys(images: Tensor) -> Tensor:
    """int64[B]: a key for each image uint8[B, 3, S, S], by its pixels: it goes with an image whatever its name.

    On the CPU.
    """
    digests = (hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=8).digest() for image in images)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)
