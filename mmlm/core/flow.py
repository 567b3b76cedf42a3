"""What flows through mmlm, from a source to a loss. Nothing here computes a model or an objective.

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
from typing import Protocol, Self

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
    """A batch on one device. The only place where padding and the input/target shift are defined.

    A caption is ``start, token, ..., token, end``; position t of ``inputs`` predicts position t of ``targets``.
    """

    images: Tensor
    """uint8[B, 3, H, W], not normalised: the encoder knows its own mean and deviation."""
    tokens: Tensor
    """int64[C, T]: start, tokens, end, then padding up to a bucketed T."""
    lengths: Tensor
    """int64[C]: tokens of each caption, start and end included, padding not."""
    image_index: Tensor
    """int64[C]: row of ``images`` each caption belongs to, or ``TEXT_ONLY``."""
    image_concept: Tensor
    """int64[B]: positives key of each image (a stable hash; equal keys are positives)."""
    caption_concept: Tensor
    """int64[C]: positives key of each caption."""
    caption_key: Tensor
    """int64[C]: stable hash of the caption's text; equal texts are positives whatever their concept."""
    ids: tuple[str, ...]
    """Example id of each image, B of them."""
    captions: tuple[Caption, ...]
    """The captions themselves, C of them (for people: reports, previews)."""
    corrupt: tuple[str, ...] = ()
    """``id: reason`` of the examples that belonged here and could not be decoded."""
    position: int = 0
    """Examples given to all ranks since the run's start, this batch included. 0 outside training."""
    epoch: int = 0
    """The epoch that the batch begins in, from 0: that of the first example of the global batch, on every rank."""

    @property
    def inputs(self) -> Tensor:
        """int64[C, T - 1]: what the decoder reads."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """int64[C, T - 1]: what it should predict, one position later."""
        return self.tokens[:, 1:]

    @property
    def target_mask(self) -> Tensor:
        """bool[C, T - 1]: true where a target is a real token (the end token is one, padding is not)."""
        positions = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return positions[None, :] < (self.lengths - 1)[:, None]

    @property
    def num_targets(self) -> Tensor:
        """int64[]: supervised tokens of this batch."""
        return (self.lengths - 1).sum()

    @cached_property
    def image_key(self) -> Tensor:
        """int64[B]: stable hash of each image's id; what randomness about it is keyed by. Asked for several times."""
        return torch.tensor([stable_hash(name) for name in self.ids], dtype=torch.int64, device=self.tokens.device)

    @property
    def caption_image_key(self) -> Tensor:
        """int64[C]: the key of each caption's image mixed with that of its text; what its randomness is keyed by."""
        own = torch.cat([self.image_key, self.image_key.new_zeros(1)])  # the last is that of text-only captions
        return own[self.image_index] * 3 + self.caption_key

    def split(self, examples: int) -> tuple["Batch", ...]:
        """Micro-batches of at most ``examples`` images, each with its captions; text-only captions are spread evenly.

        Captions keep their order within a micro-batch, and padding that none of its captions needs is cut off. Raises
        UserError for a number below 1.
        """
        if examples < 1:
            raise UserError(f"train.micro_batch_size: {examples} must be at least 1 example")
        count = max(1, -(-len(self.images) // examples))
        text_only = self.image_index == TEXT_ONLY
        part = torch.where(text_only, (text_only.cumsum(0) - 1) * count // text_only.sum().clamp(min=1), 0)
        part = torch.where(text_only, part, self.image_index // examples)
        return tuple(self._part(range(len(self.images))[i * examples :][:examples], part == i) for i in range(count))

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two micro-batches; the second is empty if there are fewer than two images."""
        end = len(self.images)
        if end > 1:
            return self.split(-(-end // 2))
        return self, self._part(range(end, end), torch.zeros_like(self.lengths, dtype=torch.bool))

    def _part(self, rows: range, chosen: Tensor) -> "Batch":
        """The images ``rows`` and the captions where bool[C] ``chosen`` is true."""
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
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})


class Stream(IntEnum):
    """Uses of randomness keyed by (seed, step, example): each draws its own numbers."""

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
    """The seed and the optimizer step: with the example, all that the masks and choices of objectives depend on.

    So neither the number of ranks nor that of micro-batches, nor where a run was stopped, changes them.
    """

    seed: int = 0
    step: int = 0
    """Optimizer steps done before this one."""

    def uniform(self, keys: Tensor, count: int, stream: Stream) -> Tensor:
        """float64[K, count] in [0, 1) for int64[K] ``keys``."""
        return keyed_uniform(self.seed, self.step, keys, count, stream)

    def chosen(self, keys: Tensor, count: int, size: int, stream: Stream) -> Tensor:
        """int64[K, size]: for each of int64[K] ``keys``, that many of ``range(count)`` at random, ascending."""
        order = self.uniform(keys, count, stream).argsort(dim=1, stable=True)
        return order[:, :size].sort(dim=1).values


@dataclass(frozen=True)
class TextPattern:
    """How a decoder reads captions when it is not left to right. Position t of ``Batch.inputs`` is one place."""

    visible: Tensor
    """int64[C]: so many leading inputs may be looked at from everywhere; 0 is causal attention."""
    masked: Tensor | None = None
    """bool[C, T - 1]: inputs that are replaced by the mask embedding; None masks nothing."""
    mask_embedding: Tensor | None = None
    """float[D], the objective's own; needed with ``masked``."""


class View:
    """What an objective asks the model to run; equal views run once and objectives share them."""


@dataclass(frozen=True)
class EmbedView(View):
    """Image and text embeddings, without the multimodal layers."""


@dataclass(frozen=True)
class TextView(View):
    """The decoder's hidden states at the supervised positions, by a ``TextPattern`` drawn for each batch."""

    name: str
    """``causal`` reads from left to right and has no pattern; any other belongs to the objective that draws it."""


@dataclass(frozen=True)
class PatchView(View):
    """The encoder's tokens of those patches that were drawn for each image: int64[B, K], ascending."""

    name: str


@dataclass(frozen=True)
class ImageView(View):
    """Embeddings of other pixels than the batch's, drawn for each batch: uint8[K, 3, S, S]."""

    name: str
    """``whole`` are the batch's images as they are and nothing is drawn; any other is the drawing objective's."""


EMBED = EmbedView()
CAPTION = TextView("causal")
WHOLE_IMAGE = ImageView("whole")

KEPT_BY_DROPOUT = PatchView("kept by dropout")
"""No objective asks for it: what patch dropout leaves of the images in the pass that all but patch views share."""

ViewInputs = Mapping[View, TextPattern | Tensor]
"""What was drawn for the views of a batch: a pattern for each text view but ``CAPTION``, patches for each patch view,
pixels for each image view but ``WHOLE_IMAGE``. All are made by the objective that asks for the view (those of
``KEPT_BY_DROPOUT`` by the model), keyed by ``StepKey`` and example.
"""
NO_VIEW_INPUTS: ViewInputs = MappingProxyType({})


@dataclass(frozen=True)
class VisiblePatches:
    """What an encoder made of some of the patches of each image."""

    tokens: Tensor
    """float[B, K, D], without prefix tokens."""
    kept: Tensor
    """int64[B, K]: which patches these are, in ascending order."""


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs to be fused: each is made where its image is, from texts of any rank or micro-batch."""

    image_index: Tensor
    """int64[Q]: row of this batch's images."""
    tokens: Tensor
    """int64[Q, T]: the text, as in ``Batch.tokens``."""
    lengths: Tensor
    """int64[Q]."""
    matched: Tensor
    """bool[Q]: whether the text belongs to the image."""
    global_count: Tensor
    """int64[]: pairs of the whole batch."""


@dataclass(frozen=True)
class ModelSizes:
    """Widths that the parts of an objective are made for. None: the model has no such part."""

    embedding_width: int
    """E."""
    patch_width: int
    """D of the encoder's tokens."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    decoder_width: int | None
    """D of the decoder's hidden states."""
    vocab_size: int | None
    """V."""
    patch_size: tuple[int, int] | None = None
    """Rows and columns of pixels of a patch; None if the encoder cannot see some patches only."""
    teacher: "ModelSizes | None" = None
    """Those of the teacher; None: there is no teacher."""


@dataclass(frozen=True)
class ModelOutput:
    """What the model made of a batch; a field is None (or empty) when no view asked for it.

    Logits are made where they are needed (``hidden @ head_weight.T``), so that a loss can avoid holding them.
    """

    image_embedding: Tensor | None = None
    """float32[B, E] (float64 of a float64 model), unit length."""
    text_embedding: Tensor | None = None
    """float32[C, E], as above."""
    hidden: Mapping[View, Tensor] = field(default_factory=dict)
    """Of each text view, float[P, D]: decoder states at the positions of ``Batch.target_mask``, row-major, after the
    last norm."""
    head_weight: Tensor | None = None
    """float32[V, D]: the output projection that turns ``hidden`` into logits."""
    patches: Mapping[View, VisiblePatches] = field(default_factory=dict)
    """Of each patch view."""
    image_tokens: Tensor | None = None
    """float[B, N, D]: what the encoder made of the images and the bridge reads."""
    image_pooled: Tensor | None = None
    """float[B, Dp]: the image in one vector, if the encoder pools."""
    memory: Tensor | None = None
    """float[B, M, Dm]: what the bridge made of that."""
    pairs: Pairs | None = None
    """What was chosen to be fused, and"""
    fused: Tensor | None = None
    """float[Q, D]: the decoder's states at the end of each pair's text."""
    view_embedding: Mapping[View, Tensor] = field(default_factory=dict)
    """Of each image view, float32[K, E], unit length."""
    projected: Mapping[View, Tensor] = field(default_factory=dict)
    """What an objective's own head made of those, float[K, ...]; see ``Objective.project``."""
    teacher: "ModelOutput | None" = None
    """What the teacher made of the same batch, without gradient."""


@dataclass(frozen=True)
class Term:
    """A named part of a loss, or a figure: a sum over this process's items, and the count over *all* of them.

    All: those of every rank and micro-batch. So the values of all ranks and micro-batches add up to the whole's.
    """

    local_sum: Tensor
    """float32[], with gradient if it is part of a loss."""
    global_count: Tensor
    """float32[], no gradient."""
    weight: float = 1.0
    of_tokens: bool = False
    """Whether it is the negative log-likelihood of tokens, so that ``exp(value)`` of the whole is a perplexity."""

    @property
    def value(self) -> Tensor:
        """float32[]: the share that these items have in the mean, unweighted."""
        return self.local_sum / self.global_count

    @property
    def weighted(self) -> Tensor:
        """float32[]: the share of these items in the total loss."""
        return self.weight * self.value

    def detached(self) -> "Term":
        """The same without gradient."""
        return replace(self, local_sum=self.local_sum.detach())


class Diagnosis(Protocol):
    """Sums for the figures that are made at some steps only; see ``mmlm/training/diagnosis.py``."""

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
    """Named terms and figures of one micro-batch (or, joined, of all of a rank's). ``total`` is differentiated.

    Gradients of ``total`` are *summed* over micro-batches and ranks: each term is a local sum over a global count.
    """

    terms: Mapping[str, Term]
    figures: Mapping[str, Term] = field(default_factory=dict)
    """Without gradient: values worth watching (temperature, accuracy), by name."""
    diagnosis: Diagnosis | None = None
    """Sums for the figures that are made at some steps only."""

    @property
    def total(self) -> Tensor:
        """float32[]: the weighted sum of the terms."""
        return torch.stack([term.weighted for term in self.terms.values()]).sum()

    def by_objective(self) -> dict[str, Tensor]:
        """float32[]: each objective's share of ``total``, by its name: the first word of those of its terms."""
        totals: dict[str, Tensor] = {}
        for label, term in self.terms.items():
            name = label.partition("/")[0]
            totals[name] = term.weighted if name not in totals else totals[name] + term.weighted
        return totals

    @classmethod
    def joined(cls, losses: Sequence["Loss"]) -> "Loss":
        """The loss of all micro-batches, without gradient."""
        terms = {name: _joined([loss.terms[name] for loss in losses]) for name in losses[0].terms}
        figures = {name: _joined([loss.figures[name] for loss in losses]) for name in losses[0].figures}
        diagnosed = [loss.diagnosis for loss in losses if loss.diagnosis is not None]
        return cls(terms, figures, type(diagnosed[0]).joined(diagnosed) if diagnosed else None)


def _joined(terms: Sequence[Term]) -> Term:
    return replace(terms[0], local_sum=torch.stack([term.local_sum.detach() for term in terms]).sum())
