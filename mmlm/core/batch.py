"""What is trained on: an image with its captions, and a padded batch of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stable_hash
from mmlm.core.wording import utf8, whole_characters

TEXT_ONLY = -1
"""``Batch.image_index`` of a caption that belongs to no image."""


@dataclass(frozen=True)
class Turn:
    """An earlier turn of a dialogue: what the model read, and what it wrote, which is learned as the last answer is."""

    read: str
    written: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", whole_characters(self.read))
        object.__setattr__(self, "written", whole_characters(self.written))


@dataclass(frozen=True)
class Caption:
    """One caption and the language it is written in (a tokenizer's language code, or None if unknown).

    With a ``source`` it is an answer: the model reads the source, and is trained to write the caption alone. Raises
    ValueError for earlier turns without a source.
    """

    text: str
    language: str | None = None
    kind: str | None = field(default=None, compare=False)
    """What sort of caption it is, such as ``title`` or ``synthetic``, by which it is chosen; None if nobody says."""
    source: str | None = None
    """What is read before the caption, such as a question; None: nothing."""
    turns: tuple[Turn, ...] = ()
    """What was read and written before the source, the earliest first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", whole_characters(self.text))
        if self.source is not None:
            object.__setattr__(self, "source", whole_characters(self.source))
        elif self.turns:
            raise ValueError("a caption with earlier turns needs a source, which it answers")


@dataclass(frozen=True)
class Example:
    """One decoded image with its captions.

    ``image`` is uint8[3, H, W] (RGB) at the source's own size, or None for text only. ``concept`` is the positives
    key: images and captions of equal concept are positives of each other. None means that only the image's own
    captions (and captions of equal text) are.
    """

    id: str
    image: Tensor | None
    captions: tuple[Caption, ...]
    concept: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", utf8(self.id).decode())  # it may be a file's name in no encoding


@dataclass(frozen=True)
class ExampleTexts:
    """An example without its pixels: what a source knows of it without decoding an image. See ``Example``."""

    id: str
    captions: tuple[Caption, ...]
    concept: str | None
    has_image: bool
    """False for text only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", utf8(self.id).decode())


@dataclass(frozen=True)
class BatchTally:
    """What is told of how a batch was made. Nothing is computed from it."""

    cut_captions: int = 0
    """Captions that are longer than the model reads."""
    cut_tokens: int = 0
    """Tokens that these have lost."""
    by_source: Mapping[str, int] = field(default_factory=dict)
    """Examples of each source of a mixture; empty where there is but one source."""


@dataclass(frozen=True)
class Batch:
    """A batch on one device; the only class that defines padding and the shift between inputs and targets.

    A caption is ``start, token, ..., token, end``; position t of ``inputs`` predicts position t of ``targets``. One
    that answers a source is ``start, source, end, answer, end``, with earlier turns between the start and the source,
    each ``read, end, written, end``: there is one start, and a model that has read ``start, source, end`` writes the
    answer.
    """

    images: Tensor
    """uint8[B, 3, H, W], not normalised: the encoder knows its own mean and deviation."""
    tokens: Tensor
    """int64[C, T]: start, tokens, end, then padding up to a bucketed T."""
    lengths: Tensor
    """int64[C]: number of tokens of each caption, counting start and end but no padding."""
    image_index: Tensor
    """int64[C]: the row of ``images`` that each caption belongs to, or ``TEXT_ONLY``."""
    image_concept: Tensor
    """int64[B]: positives key of each image, a stable hash: images and captions of equal keys are positives."""
    caption_concept: Tensor
    """int64[C]: positives key of each caption."""
    caption_key: Tensor
    """int64[C]: stable hash of each caption's language and text; equal texts are positives whatever their concept."""
    ids: tuple[str, ...]
    """The example id of each image, B in all."""
    captions: tuple[Caption, ...]
    """The captions as text, C in all: for reports and previews."""
    corrupt: tuple[str, ...] = ()
    """``id: reason`` for each example of this batch that could not be decoded."""
    corrupt_at: tuple[int, ...] = ()
    """In training, the place of each of ``corrupt`` in the order of the run: examples of all ranks before it."""
    position: int = 0
    """Examples given to all ranks since the run's start, this batch included. 0 outside training."""
    epoch: int = 0
    """The epoch that the batch begins in, from 0: that of the first example of the global batch, on every rank."""
    tally: BatchTally = field(default_factory=BatchTally)
    """Of the whole share of the batch; that of its first micro-batch."""
    compared: Tensor | None = None
    """bool[C]: the captions that images are compared with; None: all."""
    predicted: Tensor | None = None
    """bool[C]: the captions whose tokens are predicted; None: all."""
    trained: Tensor | None = None
    """bool[C, T]: the tokens that are written (those of answers and the end of each), and not read; None: all."""
    negative: Tensor | None = None
    """bool[C]: texts that are false of their image, though nearly true: neither compared as captions nor predicted, but
    candidates beside the captions for a loss that reads them; None: there are none in this run."""

    @property
    def inputs(self) -> Tensor:
        """int64[C, T - 1]: the tokens that the decoder reads."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """int64[C, T - 1]: the tokens that the decoder should predict, those of ``inputs`` one position later."""
        return self.tokens[:, 1:]

    @property
    def target_mask(self) -> Tensor:
        """bool[C, T - 1]: true where a target is a real token that is written, and not one of a source.

        The end token is one, that of every turn; padding is not.
        """
        return self.real_mask if self.trained is None else self.real_mask & self.trained[:, 1:]

    @property
    def real_mask(self) -> Tensor:
        """bool[C, T - 1]: true where a target is a real token, read or written; padding is not."""
        positions = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return positions[None, :] < (self.lengths - 1)[:, None]

    def written(self, states: Tensor) -> Tensor:
        """float[R, D] at ``real_mask``, as decoders give states -> float[P, D] at ``target_mask``, row-major."""
        return states if self.trained is None else states[self.trained[:, 1:][self.real_mask]]

    @property
    def compared_index(self) -> Tensor:
        """int64[C]: ``image_index``, with ``TEXT_ONLY`` also for captions that are not for comparisons."""
        return self.image_index if self.compared is None else self.image_index.where(self.compared, TEXT_ONLY)

    @property
    def num_targets(self) -> Tensor:
        """int64[]: number of targets of this batch that are real tokens and written."""
        return self.target_counts.sum()

    @property
    def target_counts(self) -> Tensor:
        """int64[C]: the same of each caption; at least 1, its end."""
        return self.lengths - 1 if self.trained is None else self.target_mask.sum(dim=1)

    @cached_property
    def image_key(self) -> Tensor:
        """int64[B]: stable hash of each image's id, the key of all randomness about it. Cached: hashing is slow."""
        return torch.tensor([stable_hash(name) for name in self.ids], dtype=torch.int64, device=self.tokens.device)

    @property
    def caption_image_key(self) -> Tensor:
        """int64[C]: the key of all randomness about a caption: its image's key mixed with its text's key."""
        own = torch.cat([self.image_key, self.image_key.new_zeros(1)])  # the 0 is for text-only captions: index -1
        return own[self.image_index] * 3 + self.caption_key

    def split(self, examples: int) -> tuple["Batch", ...]:
        """Micro-batches of at most ``examples`` images, each with its captions; text-only captions are spread evenly.

        Captions keep their order within a micro-batch, and padding that no caption of the micro-batch needs is cut off.
        Raises UserError if ``examples`` is below 1.
        """
        if examples < 1:
            raise UserError(f"train.micro_batch_size: {examples} must be at least 1 example")
        count = max(1, -(-len(self.images) // examples))
        # part: int64[C], the micro-batch of each caption. Of n text-only captions the k-th goes to k * count // n.
        text_only = self.image_index == TEXT_ONLY
        part = torch.where(text_only, (text_only.cumsum(0) - 1) * count // text_only.sum().clamp(min=1), 0)
        part = torch.where(text_only, part, self.image_index // examples)
        return tuple(self._part(range(len(self.images))[i * examples :][:examples], part == i) for i in range(count))

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two micro-batches; the second is empty if there are fewer than two images."""
        end = len(self.images)
        if end > 1:
            first, second = self.split(-(-end // 2))
            return first, second
        return self, self._part(range(end, end), torch.zeros_like(self.lengths, dtype=torch.bool))

    def _part(self, rows: range, chosen: Tensor) -> "Batch":
        """A micro-batch: the images in ``rows``, and the captions where bool[C] ``chosen`` is true."""
        index, lengths = self.image_index[chosen], self.lengths[chosen]
        span = slice(rows.start, rows.stop)
        width = int(lengths.max()) if len(lengths) else self.tokens.shape[1]
        return Batch(
            images=self.images[span],
            tokens=self.tokens[chosen, :width],
            lengths=lengths,
            image_index=torch.where(index == TEXT_ONLY, index, index - rows.start),
            image_concept=self.image_concept[span],
            caption_concept=self.caption_concept[chosen],
            caption_key=self.caption_key[chosen],
            ids=self.ids[span],
            captions=tuple(caption for caption, kept in zip(self.captions, chosen.tolist(), strict=True) if kept),
            corrupt=self.corrupt if rows.start == 0 else (),
            corrupt_at=self.corrupt_at if rows.start == 0 else (),
            position=self.position,
            epoch=self.epoch,
            compared=None if self.compared is None else self.compared[chosen],
            predicted=None if self.predicted is None else self.predicted[chosen],
            trained=None if self.trained is None else self.trained[chosen, :width],
            negative=None if self.negative is None else self.negative[chosen],
            tally=self.tally if rows.start == 0 else BatchTally(),
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)
