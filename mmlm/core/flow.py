"""The dataclasses that carry the data from a source to a loss. Nothing here computes a model or an objective.

source -> Example -> Batch -> encoder -> bridge -> decoder -> ModelOutput -> Objective -> Loss

Shape letters used in every docstring of the package:

    B images of a batch       C captions of a batch      N patch tokens of an image
    M memory tokens (bridge)  T text tokens of a caption P supervised text positions of a batch
    D width                   E embedding width          V vocabulary          W ranks
    Q image-text pairs
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.keyed_random import keyed_uniform, stable_hash

TEXT_ONLY = -1
"""``Batch.image_index`` of a caption that belongs to no image."""


@dataclass(frozen=True)
class Caption:
    """One caption and the language it is written in (a tokenizer's language code, or None if unknown)."""

    text: str
    language: str | None = None


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


@dataclass(frozen=True)
class Batch:
    """A batch on one device; the only class that defines padding and the shift between inputs and targets.

    A caption is ``start, token, ..., token, end``; position t of ``inputs`` predicts position t of ``targets``.
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
    position: int = 0
    """Examples given to all ranks since the run's start, this batch included. 0 outside training."""
    epoch: int = 0
    """The epoch that the batch begins in, from 0: that of the first example of the global batch, on every rank."""

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
        """bool[C, T - 1]: true where a target is a real token (the end token is one, padding is not)."""
        positions = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return positions[None, :] < (self.lengths - 1)[:, None]

    @property
    def num_targets(self) -> Tensor:
        """int64[]: number of targets of this batch that are real tokens."""
        return (self.lengths - 1).sum()

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
        return Batch(
            images=self.images[span],
            tokens=self.tokens[chosen, : int(lengths.max()) if len(lengths) else self.tokens.shape[1]],
            lengths=lengths,
            image_index=torch.where(index == TEXT_ONLY, index, index - rows.start),
            image_concept=self.image_concept[span],
            caption_concept=self.caption_concept[chosen],
            caption_key=self.caption_key[chosen],
            ids=self.ids[span],
            captions=tuple(caption for caption, kept in zip(self.captions, chosen.tolist(), strict=True) if kept),
            corrupt=self.corrupt if rows.start == 0 else (),
            position=self.position,
            epoch=self.epoch,
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class Stream(IntEnum):
    """The uses of randomness that is keyed by (seed, step, example); each use draws its own, independent numbers."""

    PARALLEL = 16
    PREFIX = 17
    MASKED_TEXT = 18
    MASKED_PATCHES = 19
    NEGATIVE_TEXT = 20
    NEGATIVE_IMAGE = 21
    LOCAL_VIEW = 22
    PATCH_DROPOUT = 23


@dataclass(frozen=True)
class StepKey:
    """The seed and the optimizer step. With the example's key they decide every random mask and choice of an objective.

    Masks and choices therefore do not depend on the number of ranks or micro-batches, nor on where a run was stopped.
    """

    seed: int = 0
    step: int = 0
    """Number of optimizer steps before this one."""

    def uniform(self, keys: Tensor, count: int, stream: Stream) -> Tensor:
        """float64[K, count] in [0, 1) for int64[K] ``keys``."""
        return keyed_uniform(self.seed, self.step, keys, count, stream)

    def chosen(self, keys: Tensor, count: int, size: int, stream: Stream) -> Tensor:
        """int64[K, size]: for each of int64[K] ``keys`` a random subset of ``range(count)`` of that size, ascending."""
        order = self.uniform(keys, count, stream).argsort(dim=1, stable=True)
        return order[:, :size].sort(dim=1).values


@dataclass(frozen=True)
class TextPattern:
    """The attention and the masks of a text view that is not causal, by positions of ``Batch.inputs``."""

    visible: Tensor
    """int64[C]: number of leading inputs that every position may attend to; 0 is causal attention."""
    masked: Tensor | None = None
    """bool[C, T - 1]: true where the input is replaced by the mask embedding; None masks nothing."""
    mask_embedding: Tensor | None = None
    """float[D]: a parameter of the objective that masks; needed with ``masked``."""


class View:
    """A pass that an objective asks the model to run; equal views run once and objectives share the result."""


@dataclass(frozen=True)
class EmbedView(View):
    """Image and text embeddings, without the multimodal layers."""


@dataclass(frozen=True)
class TextView(View):
    """The decoder's hidden states at the supervised positions, by a ``TextPattern`` drawn for each batch."""

    name: str
    """``causal`` reads from left to right and has no pattern; any other view belongs to the objective that draws it."""


@dataclass(frozen=True)
class PatchView(View):
    """The encoder's tokens of K patches of each image, drawn for each batch: int64[B, K], ascending."""

    name: str


@dataclass(frozen=True)
class ImageView(View):
    """Embeddings of images that are made from the batch's, such as crops: uint8[K, 3, S, S], drawn for each batch."""

    name: str
    """``whole``: the batch's images as they are, nothing is drawn. Any other belongs to the objective that draws it."""


EMBED = EmbedView()
CAPTION = TextView("causal")
WHOLE_IMAGE = ImageView("whole")

KEPT_BY_DROPOUT = PatchView("kept by dropout")
"""The patches that survive patch dropout. No objective requests them; the model draws them for its full-image pass."""

ViewInputs = Mapping[View, TextPattern | Tensor]
"""The random inputs of a batch's views: a pattern for each text view but ``CAPTION``, patches for each patch view,
pixels for each image view but ``WHOLE_IMAGE``. The objective that asks for a view draws its input (the model draws that
of ``KEPT_BY_DROPOUT``), keyed by ``StepKey`` and example.
"""
NO_VIEW_INPUTS: ViewInputs = MappingProxyType({})


@dataclass(frozen=True)
class VisiblePatches:
    """An encoder's tokens of some of the patches of each image."""

    tokens: Tensor
    """float[B, K, D], without prefix tokens."""
    kept: Tensor
    """int64[B, K]: the numbers of these patches, ascending."""


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs that the decoder reads together. A pair is made on the rank and in the micro-batch of its image;
    its text may be of any other."""

    image_index: Tensor
    """int64[Q]: the row of this micro-batch's images."""
    tokens: Tensor
    """int64[Q, T]: the text, as in ``Batch.tokens``."""
    lengths: Tensor
    """int64[Q]: as in ``Batch.lengths``."""
    matched: Tensor
    """bool[Q]: whether the text belongs to the image."""
    global_count: Tensor
    """int64[]: number of pairs of all ranks and micro-batches."""


@dataclass(frozen=True)
class ModelSizes:
    """The widths of a model, handed to ``Objective.connect``. A width is None if the model has no such part."""

    embedding_width: int
    """E, of image and text embeddings alike."""
    patch_width: int
    """D of the encoder's tokens."""
    grid: tuple[int, int]
    """Rows and columns of patches of an image."""
    decoder_width: int | None
    """D of the decoder's hidden states."""
    vocab_size: int | None
    """V, the number of logits at a position."""
    patch_size: tuple[int, int] | None = None
    """Height and width of a patch in pixels; None if the encoder cannot run on a subset of the patches."""
    teacher: "ModelSizes | None" = None
    """The widths of the teacher; None without a teacher."""


@dataclass(frozen=True)
class ModelOutput:
    """The model's results for a micro-batch; a field is None (or empty) if no view asked for it.

    There are no logits: a loss makes them where it needs them (``hidden @ head_weight.T``), a chunk at a time if
    they are many.
    """

    image_embedding: Tensor | None = None
    """float32[B, E] (float64 of a float64 model), unit length."""
    text_embedding: Tensor | None = None
    """float32[C, E] (float64 of a float64 model), unit length."""
    hidden: Mapping[View, Tensor] = field(default_factory=dict)
    """For each text view, float[P, D]: the decoder's states after the last norm at the positions of
    ``Batch.target_mask``, row-major."""
    head_weight: Tensor | None = None
    """float32[V, D]: the output projection that turns ``hidden`` into logits."""
    patches: Mapping[View, VisiblePatches] = field(default_factory=dict)
    """For each patch view, the encoder's tokens."""
    image_tokens: Tensor | None = None
    """float[B, N, D]: the encoder's tokens, as the bridge reads them; kept class and register tokens come first."""
    image_pooled: Tensor | None = None
    """float[B, Dp]: one vector for each image, if the encoder pools."""
    memory: Tensor | None = None
    """float[B, M, Dm]: the bridge's memory tokens, which the decoder reads."""
    pairs: Pairs | None = None
    """The image-text pairs that were run through the decoder; see ``fused``."""
    fused: Tensor | None = None
    """float[Q, D]: for each of ``pairs``, the decoder's state at the end token of the text."""
    view_embedding: Mapping[View, Tensor] = field(default_factory=dict)
    """For each image view, float32[K, E], unit length."""
    projected: Mapping[View, Tensor] = field(default_factory=dict)
    """For each image view, float[K, ...]: the output of an objective's own head; see ``Objective.project``."""
    teacher: "ModelOutput | None" = None
    """The teacher's results for the same micro-batch, without gradient."""


@dataclass(frozen=True)
class Term:
    """A part of a loss, or a figure: a sum over the items of one micro-batch and the item count of the *whole* batch.

    The whole batch is that of every rank and micro-batch, so the terms' values add up to the value of the whole batch.
    """

    local_sum: Tensor
    """float32[]: with gradient if the term is part of a loss."""
    global_count: Tensor
    """float32[]: without gradient."""
    weight: float = 1.0
    """Factor of the term in the total loss."""
    of_tokens: bool = False
    """True for a negative log-likelihood of tokens: ``exp(value)`` of the whole batch is then a perplexity."""

    @property
    def value(self) -> Tensor:
        """float32[]: what these items add to the mean over the whole batch, without the weight."""
        return self.local_sum / self.global_count

    @property
    def weighted(self) -> Tensor:
        """float32[]: what these items add to the total loss."""
        return self.weight * self.value

    def detached(self) -> "Term":
        """The same term without gradient."""
        return replace(self, local_sum=self.local_sum.detach())


class Diagnosis(Protocol):
    """Sums that are made at some steps only, for the figures in ``mmlm/training/diagnosis.py``."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sum over several micro-batches."""
        ...

    def over_ranks(self) -> Self:
        """The sum over all ranks, in one reduction."""
        ...

    def values(self) -> dict[str, float]:
        """The figures by name."""
        ...


@dataclass(frozen=True)
class Loss:
    """The terms and figures of one micro-batch or, after ``joined``, of all micro-batches of a rank.

    The backward pass starts at ``total``. Its gradients are *summed* over micro-batches and ranks, never averaged: each
    term is a local sum over a global count.
    """

    terms: Mapping[str, Term]
    figures: Mapping[str, Term] = field(default_factory=dict)
    """Values to watch, such as temperature and accuracy, by name; without gradient."""
    diagnosis: Diagnosis | None = None
    """Sums of the steps that are diagnosed; None at any other step."""

    @property
    def total(self) -> Tensor:
        """float32[]: the weighted sum of the terms."""
        return torch.stack([term.weighted for term in self.terms.values()]).sum()

    def by_objective(self) -> dict[str, Tensor]:
        """float32[] for each objective: its share of ``total``. A term is named ``objective`` or ``objective/part``."""
        totals: dict[str, Tensor] = {}
        for label, term in self.terms.items():
            name = label.partition("/")[0]
            totals[name] = term.weighted if name not in totals else totals[name] + term.weighted
        return totals

    @classmethod
    def joined(cls, losses: Sequence["Loss"]) -> "Loss":
        """The sum of the losses of all micro-batches of a rank, without gradient."""
        terms = {name: _joined([loss.terms[name] for loss in losses]) for name in losses[0].terms}
        figures = {name: _joined([loss.figures[name] for loss in losses]) for name in losses[0].figures}
        diagnosed = [loss.diagnosis for loss in losses if loss.diagnosis is not None]
        return cls(terms, figures, type(diagnosed[0]).joined(diagnosed) if diagnosed else None)


def _joined(terms: Sequence[Term]) -> Term:
    return replace(terms[0], local_sum=torch.stack([term.local_sum.detach() for term in terms]).sum())
