"""The slots of a model and what it needs of whatever stands in them: encoder, bridge, text encoder, decoder.

Widths and sizes run from left to right: ``build`` hands each part those of the parts before it, by the argument names
given here, if its constructor asks for them.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from mmlm.core.flow import TextPattern
from mmlm.model.blocks import AttentionRecord

Fusion = Literal["cross_attention", "prefix"]
"""How a decoder takes the bridge's memory: by cross-attention, or in front of its text."""

MODEL_SLOTS = ("encoder", "bridge", "text_encoder", "decoder")
"""The slots of a model, in the order in which they are built; ``ImageTextModel`` has an attribute of each name."""

OPEN_CLIP = "open_clip"
"""``vocabulary`` of a part that reads CLIP's tokens: those of the tokenizer ``open_clip``."""


@dataclass(frozen=True)
class EncoderOutput:
    """What an encoder makes of images."""

    tokens: Tensor
    """float[B, N, D]: prefix tokens (class, registers) that the encoder keeps, then one token a patch, row by row."""
    pooled: Tensor | None = None
    """float[B, Dp]: the image in one vector, if the encoder pools."""


class Encoder(Protocol):
    """Image encoder. Built with ``image_size`` (pixels a side) and ``load_weights``."""

    width: int
    """D of the tokens."""
    grid: tuple[int, int]
    """Rows and columns of the patch tokens; N = ``num_prefix_tokens`` + rows * columns."""
    num_prefix_tokens: int
    """Tokens of the output that stand before the patches."""
    pooled_width: int | None
    """Width of ``EncoderOutput.pooled``; None leaves pooling to the bridge."""
    drops_patches: bool
    """Whether some patches are left out in training: N is smaller there, and calls give ``kept``."""
    num_kept: int
    """K, the patches that stay; only needed if it drops patches."""

    def __call__(self, images: Tensor, kept: Tensor | None = None) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens and, if ``pooled_width`` is set, the pooled vector.

        Only encoders that drop patches take ``kept``, int64[B, K], ascending: the only patches that enter the blocks.
        """
        ...

    sees_some: bool
    """Whether ``some_tokens`` is there."""
    patch_size: tuple[int, int]
    """Rows and columns of pixels of a patch; only needed if it sees some."""

    def some_tokens(self, images: Tensor, kept: Tensor) -> Tensor:
        """uint8[B, 3, S, S], int64[B, K] -> float[B, K, D]: patch tokens of a pass that sees no other patch.

        Row i of ``kept`` has the patches of image i in ascending order; prefix tokens take part and are left out.
        """
        ...

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """The parameter ``name`` of an encoder of another grid, ``old``, at this one's; None if it is no positions."""
        ...


@dataclass(frozen=True)
class BridgeOutput:
    """What a bridge makes of the encoder's tokens."""

    memory: Tensor
    """float[B, M, Dm]: what the decoder attends to, or is prefixed with."""
    pooled: Tensor | None = None
    """float[B, Dp]: what the image embedding is projected from, if the bridge pools."""


class Bridge(Protocol):
    """Encoder to decoder. Built with ``patch_width`` (D), ``grid``, ``num_prefix_tokens``, ``drops_patches``, ``pool``.

    ``pool`` is true if the bridge has to give ``BridgeOutput.pooled``. If it is false nothing that would only serve
    pooling may be built: it would be parameters without a gradient.
    """

    memory_width: int
    num_memory: int
    """M."""
    pooled_width: int | None
    """Width of ``BridgeOutput.pooled``; None exactly if it was built with ``pool`` false."""

    def __call__(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, D] -> memory and pooled vector."""
        ...

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: how much of each patch is in each memory token; rows sum to 1."""
        ...


class TextEncoder(Protocol):
    """A text tower of its own. Built with ``vocab_size``, ``max_tokens`` and ``load_weights``.

    Without one (``text_encoder: null``) texts are embedded by the decoder's image-free layers.
    """

    width: int
    vocabulary: str | None
    """``name_or_path`` of the Hugging Face tokenizer that its weights go with, or ``OPEN_CLIP``; None takes any."""

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T] (start, tokens, end, padding), int64[C] -> float[C, D], after the tower's last norm."""
        ...


@dataclass(frozen=True)
class TextStates:
    """What a decoder makes of captions before it sees an image."""

    states: Tensor
    """float[C, T, D]; what stands at padding means nothing."""
    pooled: Tensor
    """float[C, D]: the caption in one vector."""


class Decoder(Protocol):
    """Text decoder. Built with ``vocab_size``, ``memory_width``, ``num_memory``, ``max_tokens``, ``load_weights``, and
    ``embeds_text``: whether ``text`` is what texts are embedded by. If it is not, nothing that would only serve that
    may be built: it would be parameters without a gradient.
    """

    width: int
    """D of the hidden states."""
    vocab_size: int
    fusion: Fusion
    text_width: int
    """Width of ``text(...).pooled``."""
    records_attention: bool
    """Whether ``hidden`` can fill a record."""
    vocabulary: str | None
    """As that of a ``TextEncoder``."""

    @property
    def head_weight(self) -> Tensor:
        """float32[V, D]: the output projection; logits are ``hidden @ head_weight.T``."""
        ...

    def text(self, tokens: Tensor, lengths: Tensor) -> TextStates:
        """int64[C, T], int64[C] -> the captions without any image, by layers of its own or by a pass without one."""
        ...

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """The states that predict each next token -> float[P, D], row-major, ready for ``head_weight``.

        Args:
            tokens: int64[C, T]: start, tokens, end, padding. The end token predicts nothing, so P is the sum of
                ``lengths - 1``.
            lengths: int64[C], start and end included.
            memory: float[B, M, Dm].
            image_index: int64[C]: the row of ``memory`` each caption reads, or ``TEXT_ONLY`` (it reads none).
            text: what ``text`` made of the same tokens, if it has been run; a decoder that shares those layers takes it
                over.
            record: collects the weights over the memory, float32[C, H, T - 1, M], of each layer that sees it.
        """
        ...

    takes_patterns: bool
    """Whether ``hidden_by`` is there."""

    def hidden_by(
        self, tokens: Tensor, lengths: Tensor, memory: Tensor, image_index: Tensor, pattern: TextPattern
    ) -> Tensor:
        """As ``hidden``, with the captions read by a pattern -> float[P, D]."""
        ...

    def start_decoding(self, memory: Tensor) -> Any:
        """float[B, M, Dm] -> an empty cache, the decoder's own affair; caption i reads row i."""
        ...

    def decode(self, tokens: Tensor, cache: Any) -> Tensor:
        """The next int64[B, t] tokens -> logits float[B, t, V]; the cache then holds them too."""
        ...
