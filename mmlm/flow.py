"""What flows through mmlm, from a source to a loss. Nothing here computes a model or an objective.

source -> Example -> Batch -> encoder -> bridge -> decoder -> ModelOutput -> Objective -> Loss

Shape letters used in every docstring of the package:

    B images of a batch       C captions of a batch      N patch tokens of an image
    M memory tokens (bridge)  T text tokens of a caption P supervised text positions of a batch
    D width                   E embedding width          V vocabulary          W ranks
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

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

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})


class View(enum.Enum):
    """What an objective asks the model to run. Each distinct view runs once and objectives share it."""

    EMBED = "image and text embeddings, without the multimodal layers"
    CAPTION = "causal captioning: the decoder's hidden states at the supervised positions"


@dataclass(frozen=True)
class ModelOutput:
    """What the model made of a batch; a field is None when no view asked for it.

    Logits are made where they are needed (``hidden @ head_weight.T``), so that a loss can avoid holding them.
    """

    image_embedding: Tensor | None = None
    """float32[B, E] (float64 of a float64 model), unit length."""
    text_embedding: Tensor | None = None
    """float32[C, E], as above."""
    hidden: Tensor | None = None
    """float[P, D]: decoder states at the positions of ``Batch.target_mask``, row-major, after the last norm."""
    head_weight: Tensor | None = None
    """float32[V, D]: the output projection that turns ``hidden`` into logits."""


@dataclass(frozen=True)
class Term:
    """One named term of a loss: a sum over this rank's items and the count over *all* ranks it is divided by."""

    local_sum: Tensor
    """float32[], with gradient."""
    global_count: Tensor
    """float32[], no gradient; summed over ranks (and, later, micro-batches)."""
    weight: float = 1.0

    @property
    def value(self) -> Tensor:
        """float32[]: this rank's share of the mean, unweighted. Summed over ranks it is the global mean."""
        return self.local_sum / self.global_count


@dataclass(frozen=True)
class Loss:
    """Named terms and figures of one step. ``total`` is what is differentiated.

    Gradients of ``total`` are *summed* over ranks: each term is a local sum over a global count.
    """

    terms: Mapping[str, Term]
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached float32[] values worth watching (temperature, accuracy), by name."""

    @property
    def total(self) -> Tensor:
        """float32[]: the weighted sum of the terms."""
        return torch.stack([term.weight * term.value for term in self.terms.values()]).sum()
