"""Passes that an objective asks of the model, and the keyed randomness that draws their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from mmlm.core.keyed_random import keyed_uniform


@dataclass(frozen=True)
class StepKey:
    """The seed and the optimizer step. With the example's key they decide every random mask and choice of an objective.

    Masks and choices therefore do not depend on the number of ranks or micro-batches, nor on where a run was stopped.
    """

    seed: int = 0
    step: int = 0
    """Number of optimizer steps before this one."""

    def uniform(self, keys: Tensor, count: int, stream: int) -> Tensor:
        """float64[K, count] in [0, 1) for int64[K] ``keys``.

        ``stream`` is ``mmlm.core.keyed_random.stream`` of its owner's name: each use draws its own numbers.
        """
        return keyed_uniform(self.seed, self.step, keys, count, stream)

    def chosen(self, keys: Tensor, count: int, size: int, stream: int) -> Tensor:
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
