"""One stack of layers that reads a text with the image for captions, and alone for its embedding (MaMMUT, GenLIP)."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_counts, check_dropout, check_heads
from mmlm.core.views import TextPattern
from mmlm.model.attention import AttentionRecord, KeyValueCache, prefix_mask, rows_of_images, visible_mask
from mmlm.model.blocks import (
    INIT_STD,
    NORMS,
    FeedForwardKind,
    Norm,
    check_sizes,
    init_linears,
    sinusoidal_positions,
)
from mmlm.model.decoders.prefixed import prefix_caches, read_prefixed
from mmlm.model.packing import Layout, real_rows, rows_of
from mmlm.model.protocols import Fusion, TextStates
from mmlm.model.text_encoders.pooling import pooled
from mmlm.model.transformer_layers import DecoderLayer, LayerSettings, Positions


@dataclass
class StackCache:
    """What decoding keeps from step to step; see ``DecodingCache``."""

    num_images: int
    """B."""
    layers: list[KeyValueCache]
    """Self-attention of each layer; with a prefix, each image's keys and values are there once."""
    memory: list[tuple[Tensor, Tensor] | None]
    """Cross-attention keys and values of each layer, float[B, K, M, d], made once; None for a layer without."""

    @property
    def num_tokens(self) -> int:
        """Text tokens decoded so far."""
        return self.layers[0].num_tokens

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """See ``DecodingCache``."""
        for kept in self.layers:
            kept.copy_rows(source, target)

    def keep_images(self, images: Tensor) -> None:
        """See ``DecodingCache``."""
        keys = self.layers[0].keys
        rows = rows_of_images(images, 1 if keys is None else len(keys) // self.num_images)
        for kept in self.layers:
            kept.keep_rows(images, rows)
        self.memory = [None if pair is None else (pair[0][images], pair[1][images]) for pair in self.memory]
        self.num_images = len(images)


class TwoPassDecoder(nn.Module):
    """Transformer decoder that reads a text by two passes of the same weights (MaMMUT, arXiv:2303.16839).

    - For captions, text is causal. By ``cross_attention``, every ``cross_attention_every``-th layer reads the bridge's
      memory too (MaMMUT). As a ``prefix``, the memory stands in front of the text in every layer: its tokens see each
      other and no text, and the text sees them all (GenLIP, arXiv:2605.00809).
    - For the text embedding, attention is bidirectional, and cross-attention or the prefix is left out: no image can
      have a part in it. The embedding is projected from the mean of the last states, start and end token included.

    ``TransformerDecoder`` instead embeds a text by its lower layers alone, in the pass in which it captions. Here all
    layers serve both, and a step with both losses costs a pass more.

    Of MaMMUT this is the decoder alone: its focal contrastive loss and its cropped positions are not here. The order
    within a layer, pooling by the mean and the kinds of positions are ours.

    GenLIP is one Transformer over image and text tokens, with nothing before it but the embedding of patches, and has
    the loss of captions only (``experiment=genlip``): the pass for the text embedding is not in it. Left out are its
    gates on the output of attention and its rotary positions by row and column: patches have the positions that the
    encoder gives them, and ``rotary`` counts prefix and text in one row.

    Args:
        vocab_size: tokens, V.
        memory_width: width of the bridge's memory, Dm.
        max_tokens: longest caption, start and end included.
        width: D.
        num_heads: attention heads, H.
        num_key_value_heads: heads of keys and values (grouped-query attention, arXiv:2305.13245); None is H.
        num_layers: layers of the stack (>= 1).
        fusion: how the memory enters the pass for captions: by ``cross_attention`` or as a ``prefix``.
        cross_attention_every: 2 lets every second layer read the image, from the second on; 1 every layer. None with a
            prefix, which all layers read.
        feed_forward: ``gelu``, or gated ``swiglu`` (arXiv:2002.05202) of as many weights.
        mlp_ratio: hidden units of the ``gelu`` feed-forward, in widths.
        norm: ``layer_norm``, or ``rms_norm`` (arXiv:1910.07467).
        positions: ``sinusoidal`` and ``learned`` are added to the token embedding; ``rotary`` rotates queries and keys.
        tie_weights: share the token embedding with the output projection (arXiv:1608.05859).
        packed: run token-wise layers on real tokens only.
        dropout: probability, on the output of every sub-layer.

    Raises:
        UserError: no layer, or none that reads the image, or sizes that do not go together.
    """

    vocabulary = None
    fixed_positions: Tensor | None
    """float32[max_tokens, D]: sinusoidal positions; None with other kinds. Not saved: a constant."""
    takes_patterns = True
    records_attention = True

    def __init__(
        self,
        vocab_size: int,
        memory_width: int,
        max_tokens: int,
        width: int = 192,
        num_heads: int = 4,
        num_key_value_heads: int | None = None,
        num_layers: int = 2,
        fusion: Fusion = "cross_attention",
        cross_attention_every: int | None = 2,
        feed_forward: FeedForwardKind = "gelu",
        mlp_ratio: float = 4.0,
        norm: Norm = "layer_norm",
        positions: Positions = "learned",
        tie_weights: bool = True,
        packed: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes({"num_layers": num_layers}, width, mlp_ratio)
        check_heads(width, num_heads)
        check_dropout(dropout)
        reads = _reading_layers(num_layers, fusion, cross_attention_every)
        if positions == "rotary" and (width // num_heads) % 2:
            raise ArgumentError(f"positions: rotary needs an even head width, not {width} / {num_heads}")
        self.width, self.text_width, self.vocab_size = width, width, vocab_size
        self.max_tokens, self.packed, self.fusion = max_tokens, packed, fusion
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.zeros(max_tokens, width)) if positions == "learned" else None
        fixed = sinusoidal_positions(max_tokens, width) * INIT_STD if positions == "sinusoidal" else None
        self.register_buffer("fixed_positions", fixed, persistent=False)
        self.prefix_projection = None
        if fusion == "prefix" and memory_width != width:
            self.prefix_projection = nn.Linear(memory_width, width)
        rotary = positions == "rotary"
        layer = LayerSettings(width, num_heads, mlp_ratio, rotary, dropout, feed_forward, norm, num_key_value_heads)
        self.layers = nn.ModuleList(DecoderLayer(layer, memory_width if read else None) for read in reads)
        self.norm = NORMS[norm](width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        # Sub-layers that write into the residual stream of the longer pass.
        init_linears(self, num_residual_layers=2 * num_layers + sum(reads))
        if self.position_embedding is not None:
            with keyed_start("position_embedding"):
                nn.init.normal_(self.position_embedding, std=INIT_STD)
        with keyed_start("head"):
            nn.init.normal_(self.head.weight, std=INIT_STD)
        if tie_weights:
            self.head.weight = self.token_embedding.weight

    @property
    def head_weight(self) -> Tensor:
        """float32[V, D]: the output projection."""
        return self.head.weight

    def text(self, tokens: Tensor, lengths: Tensor) -> TextStates:
        """See ``Decoder``. The pass without an image: every token sees every other one of its text."""
        layout = self._layout(tokens, lengths)
        x = self._embed(tokens, layout)
        mask = Layout.mask(lengths, tokens.shape[1])[:, None, None]
        for layer in self.layers:
            x = layer(x, layout, mask=mask)
        states = layout.pad(self.norm(x))
        return TextStates(states, pooled(states, lengths, "mean"))

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """See ``Decoder``. ``text`` is of no use: its states are of the other pass, and have seen all tokens."""
        return self._with_image(tokens, lengths, memory, image_index, record=record)

    def hidden_by(
        self, tokens: Tensor, lengths: Tensor, memory: Tensor, image_index: Tensor, pattern: TextPattern
    ) -> Tensor:
        """See ``Decoder``."""
        return self._with_image(tokens, lengths, memory, image_index, pattern)

    def _with_image(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        pattern: TextPattern | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """The pass for captions -> float[P, D]; causal without a ``pattern``. Arguments are those of ``hidden``."""
        inputs, lengths = tokens[:, :-1], lengths - 1
        layout = self._layout(inputs, lengths)
        x = self._embed(inputs, layout, pattern=pattern)
        visible = None if pattern is None else pattern.visible
        if self.fusion == "prefix":
            states = layout.pad(x)
            prefix = rows_of(self._prefix(memory), image_index).to(states.dtype)
            seen = prefix_mask(memory.shape[1], inputs.shape[1], image_index, visible, causal_prefix=False)
            return read_prefixed(self.layers, self.norm, prefix, states, lengths, seen, self.packed, record)
        mask = None if visible is None else visible_mask(visible, inputs.shape[1])
        for layer in self.layers:
            x = layer(x, layout, memory=memory, image_index=image_index, mask=mask, cross_record=record)
        return real_rows(self.norm(x), layout, lengths)

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """See ``mmlm.model.text_places.CountsPlaces``."""
        return Layout.places(lengths, num_tokens, self.packed)

    def _layout(self, tokens: Tensor, lengths: Tensor) -> Layout:
        self._check_length(tokens.shape[1])
        return Layout.of_lengths(lengths, tokens.shape[1], self.packed)

    def _embed(self, tokens: Tensor, layout: Layout, offset: int = 0, pattern: TextPattern | None = None) -> Tensor:
        """int64[C, T] -> packed float[P, D], positions counted from ``offset``; inputs masked as in ``pattern``."""
        x = self.token_embedding(layout.pack(tokens))
        if pattern is not None and pattern.masked is not None:
            assert pattern.mask_embedding is not None, "masked inputs need an embedding"
            x = torch.where(layout.pack(pattern.masked)[:, None], pattern.mask_embedding, x)
        table = self.position_embedding if self.position_embedding is not None else self.fixed_positions
        if table is None:
            return x
        positions = torch.arange(offset, offset + tokens.shape[1], device=tokens.device).expand_as(tokens)
        return x + F.embedding(layout.pack(positions), table)

    def _prefix(self, memory: Tensor) -> Tensor:
        """Memory float[B, M, Dm] -> image tokens float[B, M, D]."""
        return memory if self.prefix_projection is None else self.prefix_projection(memory)

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.max_tokens:
            raise ValueError(f"{num_tokens} tokens are more than the decoder's max_tokens {self.max_tokens}")

    def start_decoding(self, memory: Tensor, room: int | None = None) -> StackCache:
        """See ``Decoder``: a cache of all that the layers read of the images, and of no text."""
        room = self.max_tokens if room is None else room
        layers = [cast(DecoderLayer, layer) for layer in self.layers]
        if self.fusion == "prefix":
            everything = torch.ones(1, 1, 1, memory.shape[1], dtype=torch.bool, device=memory.device)
            prefix = self._prefix(memory).to(self.token_embedding.weight.dtype)
            return StackCache(len(memory), prefix_caches(layers, prefix, room, everything), [None] * len(layers))
        reads = [layer.cross_attention is not None for layer in layers]
        keys_values = [
            layer.memory_keys_values(memory) if read else None for layer, read in zip(layers, reads, strict=True)
        ]
        return StackCache(len(memory), [KeyValueCache(room) for _ in layers], keys_values)

    def decode(self, tokens: Tensor, cache: StackCache) -> Tensor:
        """See ``Decoder``."""
        self._check_length(cache.num_tokens + tokens.shape[1])
        layout = Layout(len(tokens), tokens.shape[1], None)
        x = self._embed(tokens, layout, offset=cache.num_tokens)
        for layer, kept, memory in zip(self.layers, cache.layers, cache.memory, strict=True):
            x = layer(x, layout, memory=memory, cache=kept)
        return self.head(self.norm(layout.pad(x)))


def _reading_layers(num_layers: int, fusion: Fusion, every: int | None) -> list[bool]:
    """For each layer, whether it has cross-attention. UserError for a setting without effect, or no such layer."""
    if fusion == "prefix":
        if every is not None:
            raise ArgumentError(
                f"cross_attention_every: {every} would do nothing, since every layer reads a prefix; use null"
            )
        return [False] * num_layers
    if every is None:
        raise ArgumentError("cross_attention_every: null is for fusion=prefix; use 1 or more")
    check_counts({"cross_attention_every": every})
    if every > num_layers:
        raise ArgumentError(
            f"cross_attention_every: {every} lets none of num_layers={num_layers} read the image; use {num_layers} or "
            "less"
        )
    return [number % every == 0 for number in range(1, num_layers + 1)]
