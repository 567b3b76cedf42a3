"""Interfaces of a model's four slots: encoder, bridge, text encoder, decoder.

Parts are built from left to right, and what is known by then is handed to the next one: ``EncoderInputs``,
``BridgeInputs``, ``TextEncoderInputs`` and ``DecoderInputs`` say what that is. A constructor gets those of the fields
that it has an argument of the same name for. It asks for what it uses and for no more; a config may not set them.

A part is never called with no image (B is 0) or no caption (C is 0): see ``never_empty.py``.

``mmlm/experiment/contract.py`` refuses a part that breaks its protocol, by name and before anything real is built.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from mmlm.core.views import TextPattern
from mmlm.model.attention import AttentionRecord

Fusion = Literal["cross_attention", "prefix"]
"""How the bridge's memory enters a decoder: by cross-attention, or as embeddings in front of the text."""

MODEL_SLOTS = ("encoder", "bridge", "text_encoder", "decoder")
"""The slots of a model, in the order in which they are built; ``ImageTextModel`` has an attribute of each name."""

OPEN_CLIP = "open_clip"
"""The ``vocabulary`` of a part whose weights go with CLIP's token ids, which the tokenizer ``open_clip`` makes."""


@dataclass(frozen=True)
class EncoderInputs:
    """What the constructor of an image encoder may ask for."""

    image_size: int
    """S, pixels a side of the images."""
    load_weights: bool
    """False leaves out pretrained weights: whoever builds the part loads all weights itself."""


@dataclass(frozen=True)
class EncoderOutput:
    """The result of an image encoder."""

    tokens: Tensor
    """float[B, N, D]: prefix tokens (class, registers) that the encoder keeps, then one token a patch, row by row."""
    pooled: Tensor | None = None
    """float[B, Dp]: one vector an image; None if the encoder leaves pooling to the bridge."""


class Encoder(Protocol):
    """Image encoder. Its constructor may ask for ``EncoderInputs``."""

    width: int
    """D of the tokens."""
    grid: tuple[int, int]
    """Rows and columns of the patch tokens; N = ``num_prefix_tokens`` + rows * columns."""
    num_prefix_tokens: int
    """Tokens of the output that stand before the patches."""
    pooled_width: int | None
    """Width of ``EncoderOutput.pooled``; None leaves pooling to the bridge."""
    drops_patches: bool
    """True with patch dropout: in training, calls pass ``kept`` and N is smaller."""
    num_kept: int
    """K, the patches of an image that survive patch dropout; only needed if ``drops_patches``."""
    training: bool
    """``nn.Module``'s own flag. Patch dropout is off in eval mode."""

    def __call__(self, images: Tensor, kept: Tensor | None = None) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens and, if ``pooled_width`` is set, the pooled vector.

        ``kept`` int64[B, K], ascending, lists the patches that enter the blocks. Only encoders with ``drops_patches``
        are called with it.
        """
        ...

    sees_some: bool
    """True if the encoder has ``some_tokens``."""
    patch_size: tuple[int, int]
    """Rows and columns of pixels of a patch; only needed if ``sees_some``."""

    def some_tokens(self, images: Tensor, kept: Tensor) -> Tensor:
        """uint8[B, 3, S, S], int64[B, K] -> float[B, K, D]: encodes the listed patches without seeing any other.

        Row i of ``kept`` lists the patches of image i in ascending order. Prefix tokens (class, registers) take part
        in attention; the result leaves them out.
        """
        ...

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """Resamples a position table ``old`` from another grid to this encoder's.

        ``name`` is the parameter's name in this encoder. None if ``name`` is not a position table. Only called when
        weights of a run with another image size are copied into this encoder.
        """
        ...


@dataclass(frozen=True)
class BridgeInputs:
    """What the constructor of a bridge may ask for: what the encoder gives it, and whether it has to pool."""

    patch_width: int
    """D of the encoder's tokens."""
    grid: tuple[int, int]
    """Rows and columns of the patch tokens."""
    num_prefix_tokens: int
    """Tokens (class, registers) that stand before the patches; N = ``num_prefix_tokens`` + rows * columns."""
    drops_patches: bool
    """True if the encoder leaves out some patches in training, so that N is smaller then."""
    pool: bool
    """True if the bridge has to give ``BridgeOutput.pooled``. If false, the bridge must not build parameters that only
    serve pooling: they would never get a gradient."""


@dataclass(frozen=True)
class BridgeOutput:
    """The result of a bridge."""

    memory: Tensor
    """float[B, M, Dm]: the memory tokens that the decoder attends to, or takes as a prefix."""
    pooled: Tensor | None = None
    """float[B, Dp]: one vector an image, which the image embedding is projected from; None if the encoder pools."""


class Bridge(Protocol):
    """Encoder to decoder. Its constructor may ask for ``BridgeInputs``."""

    memory_width: int
    """Dm, width of the memory tokens."""
    num_memory: int
    """M, memory tokens an image."""
    pooled_width: int | None
    """Width of ``BridgeOutput.pooled``; None exactly if the bridge was built with ``pool`` false."""

    def __call__(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, D] -> memory and pooled vector."""
        ...

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float[B, N, D] -> float32[B, M, N]: the share of each patch in each memory token; rows sum to 1.

        Serves attention maps: these shares carry the decoder's attention over the memory on to the patches.
        """
        ...


@dataclass(frozen=True)
class TextEncoderInputs:
    """What the constructor of a text encoder may ask for."""

    vocab_size: int
    """V, the ids of the run's tokenizer."""
    max_tokens: int
    """Longest text in tokens, start and end included."""
    load_weights: bool
    """See ``EncoderInputs``."""


class TextEncoder(Protocol):
    """A separate text tower. Its constructor may ask for ``TextEncoderInputs``.

    Without a text encoder (``text_encoder: null``) the decoder's image-free layers embed texts.
    """

    width: int
    """D of the result."""
    vocabulary: str | None
    """The tokenizer that the weights go with: its ``name_or_path`` at Hugging Face, or ``OPEN_CLIP``; None: any."""

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T] (start, tokens, end, padding), int64[C] -> float[C, D], after the tower's last norm."""
        ...


@dataclass(frozen=True)
class TextStates:
    """Captions as a decoder encodes them without an image."""

    states: Tensor
    """float[C, T, D]; values at padding are undefined."""
    pooled: Tensor
    """float[C, D]: one vector a caption."""


@dataclass(frozen=True)
class DecoderInputs:
    """What the constructor of a decoder may ask for: the vocabulary, and what the bridge gives it."""

    vocab_size: int
    """V, the ids of the run's tokenizer."""
    memory_width: int
    """Dm of the bridge's memory."""
    num_memory: int
    """M, memory tokens an image."""
    max_tokens: int
    """Longest caption in tokens, start and end included."""
    load_weights: bool
    """See ``EncoderInputs``."""
    embeds_text: bool
    """True if the text embedding comes from ``text``. If false, a text encoder makes it, and the decoder must not build
    parameters that only serve ``text(...).pooled``: they would never get a gradient."""


class DecodingCache(Protocol):
    """What a decoder keeps from step to step of decoding, for B images and n captions of each, image by image."""

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """The captions ``target`` int64[k] go on from what the captions ``source`` int64[k] have read, in place.

        A source and its target read the same image, and no caption is among both. Only what was read of text is copied.
        """
        ...

    def keep_images(self, images: Tensor) -> None:
        """Only ``images`` int64[k], ascending, and their captions go on, which from now on are counted among these."""
        ...


class Decoder(Protocol):
    """Text decoder. Its constructor may ask for ``DecoderInputs``."""

    width: int
    """D of the hidden states."""
    vocab_size: int
    """V."""
    fusion: Fusion
    """How the memory enters this decoder."""
    text_width: int
    """Width of ``text(...).pooled``."""
    records_attention: bool
    """True if ``hidden`` can fill an ``AttentionRecord``."""
    vocabulary: str | None
    """See ``TextEncoder.vocabulary``."""

    @property
    def head_weight(self) -> Tensor:
        """float32[V, D]: the output projection; logits are ``hidden @ head_weight.T``."""
        ...

    def text(self, tokens: Tensor, lengths: Tensor) -> TextStates:
        """int64[C, T], int64[C] -> the captions encoded without any image."""
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
        """Hidden states that predict each next token -> float[P, D], row-major, ready for ``head_weight``.

        Args:
            tokens: int64[C, T]: start, tokens, end, padding. The end token predicts nothing, so P is the sum of
                ``lengths - 1``.
            lengths: int64[C], start and end included.
            memory: float[B, M, Dm].
            image_index: int64[C]: the row of ``memory`` each caption reads, or ``TEXT_ONLY`` (it reads none).
            text: result of ``text`` for the same tokens, if that has been run. A decoder whose multimodal layers go on
                from its text layers reuses these states.
            record: collects the attention weights over the memory, float32[C, H, T - 1, M], of each layer that reads
                the memory.
        """
        ...

    takes_patterns: bool
    """True if the decoder has ``hidden_by``."""

    def hidden_by(
        self, tokens: Tensor, lengths: Tensor, memory: Tensor, image_index: Tensor, pattern: TextPattern
    ) -> Tensor:
        """Same as ``hidden``, but attention and masked inputs follow ``pattern`` instead of left to right."""
        ...

    def start_decoding(self, memory: Tensor, room: int | None = None) -> Any:
        """float[B, M, Dm] -> an empty cache for ``decode``, a ``DecodingCache`` of a type private to the decoder.

        What the decoder computes of an image, it computes here, once. ``room`` is the number of tokens, the start
        included, that captions will have at most; None is the longest that the decoder reads. Whoever has use for it
        takes the memory for all of them at once.
        """
        ...

    def decode(self, tokens: Tensor, cache: Any) -> Tensor:
        """The next int64[B * n, t] tokens -> logits float[B * n, t, V]. Appends these tokens to ``cache``, in place.

        n captions of each image stand together: caption i reads image i // n. n is the same in all calls.
        """
        ...
