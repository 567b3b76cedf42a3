"""What a model returns for a micro-batch, and the widths of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mmlm.core.views import View


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
