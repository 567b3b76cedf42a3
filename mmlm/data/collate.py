"""Makes a Batch of examples in two halves: the pixels, in a data worker, and the tokens, in the training process."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch, BatchTally, Caption, Example
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.keyed_random import stable_hash
from mmlm.data.caption_choice import CaptionSettings
from mmlm.data.tokenizer import Tokenizer, normalise_text
from mmlm.data.transforms import Transform

DEFAULT_BUCKET = 4
"""T is a multiple of this number of tokens: a compromise between few distinct shapes and little padding."""

_CACHED_CAPTIONS = 200_000
"""Number of encoded captions that are kept in memory: most captions come again in a later epoch."""


@dataclass(frozen=True)
class Prepared:
    """A share of a batch as a worker prepares it: all of it but the tokens."""

    images: Tensor
    """uint8[B, 3, S, S]."""
    examples: tuple[Example, ...]
    """The examples that could be read, in order. ``image`` is None for all: ``images`` has the pixels."""
    rows: tuple[int | None, ...]
    """For each example its row of ``images``, or None if it is text only."""
    corrupt: tuple[str, ...]
    """``id: reason`` for each example that could not be read."""
    corrupt_at: tuple[int, ...] = ()
    """The place of each of those in the share."""
    by_source: Mapping[str, int] = field(default_factory=dict)
    """See ``BatchTally``; examples that could not be read do not count."""


@dataclass(frozen=True)
class EncodedCaption:
    """A caption's token ids (start and end included) and the stable hash of its language and normalised text."""

    ids: tuple[int, ...]
    key: int
    lost: int = 0
    """Tokens that did not fit."""
    trained: tuple[bool, ...] | None = None
    """For each id whether it is written, and not read; None: all. See ``Batch.trained``."""


CaptionEncoder = Callable[[Caption], EncodedCaption]


def caption_encoder(tokenizer: Tokenizer, max_tokens: int) -> CaptionEncoder:
    """A function from Caption to EncodedCaption that caches its results.

    Raises UserError if ``max_tokens`` leaves no room for a token between start and end.
    """
    if max_tokens < 3:
        raise UserError(f"max_tokens={max_tokens} must be at least 3: start, a token, end")

    def encode(caption: Caption) -> EncodedCaption:
        if caption.source is not None:
            return _encoded_answer(caption, caption.source, tokenizer, max_tokens)
        ids = tokenizer.encode(caption.text, caption.language, max_tokens)
        # Only a caption that fills all places can have been cut.
        whole = tokenizer.encode(caption.text, caption.language, sys.maxsize) if len(ids) == max_tokens else ids
        key = stable_hash(f"{caption.language}\0{normalise_text(caption.text)}")
        return EncodedCaption(tuple(ids), key, len(whole) - len(ids))

    return lru_cache(maxsize=_CACHED_CAPTIONS)(encode)


def _encoded_answer(caption: Caption, source: str, tokenizer: Tokenizer, max_tokens: int) -> EncodedCaption:
    """``start, (read, end, written, end) of each turn, source, end, answer, end``.

    What is too long loses its earliest turns first, then the tail of its source, then the tail of its answer; never
    an end.
    """

    def pieces(text: str) -> list[int]:
        return tokenizer.encode(text, caption.language, sys.maxsize)[1:-1]

    texts = [text for turn in caption.turns for text in (turn.read, turn.written)]
    parts = [pieces(text) for text in [*texts, source, caption.text]]
    whole = 1 + sum(len(part) + 1 for part in parts)
    while len(parts) > 2 and 1 + sum(len(part) + 1 for part in parts) > max_tokens:
        parts = parts[2:]
    if len(parts) == 2:
        answer = parts[1][: max_tokens - 3]  # a start and two ends
        parts = [parts[0][: max_tokens - 3 - len(answer)], answer]
    ids, trained = [tokenizer.start_id(caption.language)], [False]
    for number, part in enumerate(parts):
        ids += [*part, tokenizer.end_id]
        trained += [number % 2 == 1] * (len(part) + 1)
    said = [normalise_text(text) for text in [*texts, source, caption.text]]
    key = stable_hash("\0".join([str(caption.language), *said]))
    return EncodedCaption(tuple(ids), key, whole - len(ids), tuple(trained))


def prepare(examples: Iterable[Example | CorruptImage], transform: Transform, uniforms: Tensor | None) -> Prepared:
    """Transforms the images of a share.

    ``uniforms`` is float64[number of ``examples``, num_uniforms], or None for no augmentation. An example that cannot
    be read or has no image has its row too, so that the draws of the others do not depend on it.
    """
    images: list[Tensor] = []
    image_positions: list[int] = []
    kept: list[Example] = []
    rows: list[int | None] = []
    corrupt: list[str] = []
    corrupt_at: list[int] = []
    for position, example in enumerate(examples):
        if isinstance(example, CorruptImage):
            corrupt.append(str(example))
            corrupt_at.append(position)
            continue
        rows.append(None if example.image is None else len(images))
        kept.append(Example(example.id, None, example.captions, example.concept))
        if example.image is not None:
            images.append(example.image)
            image_positions.append(position)
    pixels = transform(images, None if uniforms is None else uniforms[image_positions])
    return Prepared(pixels, tuple(kept), tuple(rows), tuple(corrupt), tuple(corrupt_at))


def collate(
    prepared: Prepared,
    encode: CaptionEncoder,
    pad_id: int,
    max_tokens: int,
    bucket: int,
    choice: CaptionSettings | None = None,
) -> Batch:
    """Encodes and pads the captions of a share; ``choice`` says what the captions of a kind are for, None: everything.

    T is the length of the longest caption rounded up to a multiple of ``bucket``, at most ``max_tokens``. The positives
    key of an example is the hash of its concept; without a concept it is the hash of its id, which equals no other.
    """
    captions = [caption for example in prepared.examples for caption in example.captions]
    encoded = [encode(caption) for caption in captions]
    lengths = torch.tensor([len(item.ids) for item in encoded], dtype=torch.int64)
    longest = max([len(item.ids) for item in encoded], default=1)
    width = min(max_tokens, -(-longest // bucket) * bucket)
    answers = any(item.trained is not None for item in encoded)
    padded = [[*item.ids, *[pad_id] * (width - len(item.ids))] for item in encoded]
    with_image = [example for example, row in zip(prepared.examples, prepared.rows, strict=True) if row is not None]
    image_index = [
        TEXT_ONLY if row is None else row
        for example, row in zip(prepared.examples, prepared.rows, strict=True)
        for _ in example.captions
    ]
    return Batch(
        images=prepared.images,
        tokens=torch.tensor(padded, dtype=torch.int64).view(len(captions), width),
        lengths=lengths,
        image_index=torch.tensor(image_index, dtype=torch.int64),
        image_concept=torch.tensor([_concept_key(example) for example in with_image], dtype=torch.int64),
        caption_concept=torch.tensor(
            [_concept_key(example) for example in prepared.examples for _ in example.captions], dtype=torch.int64
        ),
        caption_key=torch.tensor([item.key for item in encoded], dtype=torch.int64),
        ids=tuple(example.id for example in with_image),
        captions=tuple(captions),
        corrupt=prepared.corrupt,
        compared=_flags(_compared(captions, None if choice is None else choice.compared(captions))),
        predicted=_flags(None if choice is None else choice.predicted(captions)),
        trained=torch.tensor([_written(item, width) for item in encoded], dtype=torch.bool) if answers else None,
        negative=_flags(None if choice is None else choice.negative(captions)),
        tally=BatchTally(
            cut_captions=sum(item.lost > 0 for item in encoded),
            cut_tokens=sum(item.lost for item in encoded),
            by_source=prepared.by_source,
        ),
    )


def _concept_key(example: Example) -> int:
    """The positives key. The zero byte keeps an id apart from a concept of the same name."""
    return stable_hash(f"\0{example.id}" if example.concept is None else example.concept)


def _compared(captions: Sequence[Caption], chosen: Sequence[bool] | None) -> Sequence[bool] | None:
    """What is compared with images, but for answers: a question's answer does not describe its image."""
    if all(caption.source is None for caption in captions):
        return chosen
    admitted = [True] * len(captions) if chosen is None else chosen
    return [one and caption.source is None for one, caption in zip(admitted, captions, strict=True)]


def _written(item: EncodedCaption, width: int) -> list[bool]:
    """A row of ``Batch.trained``."""
    trained = [True] * len(item.ids) if item.trained is None else [*item.trained]
    return trained + [False] * (width - len(trained))


def _flags(given: Sequence[bool] | None) -> Tensor | None:
    """bool[C]; None stays None."""
    return None if given is None else torch.tensor(given, dtype=torch.bool)
