"""Our Transformer text decoder: unimodal layers give the text embedding, then multimodal layers read the image."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_dropout, check_heads, check_ratio
from mmlm.core.views import TextPattern
from mmlm.model.attention import AttentionRecord, KeyValueCache, prefix_mask, visible_mask
from mmlm.model.blocks import INIT_STD, NORMS, FeedForwardKind, Norm, init_linears, sinusoidal_positions
from mmlm.model.decoders.prefixed import prefix_caches, read_prefixed
from mmlm.model.decoders.transformer_cache import DecoderCache
from mmlm.model.packing import Layout, real_rows, rows_of
from mmlm.model.protocols import Fusion, TextStates
from mmlm.model.transformer_layers import DecoderLayer, LayerSettings, Positions

TextPooling = Literal["end", "cls", "cls_shifted_mask"]
"""Which token's state becomes the text embedding; see ``TransformerDecoder``."""

OPEN_CLIP_PAD = 0
"""open_clip's padding id. It is also the id of a real token: ``!`` inside a word."""


class TransformerDecoder(nn.Module):
    """Causal Transformer decoder (CoCa, arXiv:2205.01917): unimodal layers read text, multimodal layers text and image.

    The unimodal layers never see the image; the text embedding is their state at the end token, or at a learned class
    token behind it. The multimodal layers read the bridge's memory by ``cross_attention``, or as a causal ``prefix`` in
    front of the text (LLaVA, arXiv:2304.08485).

    Differs from CoCa by default: the end token, which attends to the whole caption, takes the place of CoCa's class
    token (``text_pooling``); a multimodal layer is one self-attention, cross-attention and feed-forward, pre-norm
    (``alternating``).

    Args:
        vocab_size: tokens, V.
        memory_width: width of the bridge's memory, Dm.
        width: D.
        num_heads: attention heads, H.
        num_key_value_heads: heads of keys and values, K; each serves H / K query heads in self- and cross-attention
            (grouped-query attention, arXiv:2305.13245). None is H.
        unimodal_layers: layers before the image (>= 1).
        multimodal_layers: layers with the image (>= 1).
        feed_forward: ``gelu``, or gated ``swiglu`` (arXiv:2002.05202) of as many weights.
        mlp_ratio: hidden units of the ``gelu`` feed-forward, in widths.
        norm: ``layer_norm``, or ``rms_norm`` (arXiv:1910.07467) without mean and bias.
        fusion: how the memory enters: by ``cross_attention`` or as a ``prefix``.
        alternating: a multimodal layer is self-attention with a feed-forward, then cross-attention with another
            (open_clip's CoCa), instead of one feed-forward after both.
        memory_norm: each multimodal layer normalises the memory before its keys and values (open_clip's CoCa).
        text_pooling: the state that the text embedding is projected from. ``end``: that at the end token. ``cls``: that
            at a learned class token behind the end token, with its own position; no other token attends to it.
            ``cls_shifted_mask``: the class token as open_clip's released CoCa weights need it. Their mask is off by
            one: the class token attends to one padding token and not to itself, unless the caption fills
            ``max_tokens``. With a text encoder only ``end`` is allowed.
        positions: ``sinusoidal`` and ``learned`` are added to the token embedding; ``rotary`` rotates queries and keys,
            counting the prefix if there is one.
        max_tokens: longest caption, start and end included.
        tie_weights: share the token embedding with the output projection (arXiv:1608.05859).
        packed: run token-wise layers on real tokens only.
        dropout: probability, on the output of every sub-layer.
        embeds_text: true if the text embedding comes from ``text``, and not from a text encoder.

    Raises:
        UserError: fewer than one layer of a kind, sizes that do not go together, or a setting without effect.
    """

    vocabulary = None
    fixed_positions: Tensor | None
    """float32[positions, D]: sinusoidal positions; None with other kinds. Not saved: a constant."""
    takes_patterns = True

    def __init__(
        self,
        vocab_size: int,
        memory_width: int,
        max_tokens: int,
        width: int = 192,
        num_heads: int = 4,
        num_key_value_heads: int | None = None,
        unimodal_layers: int = 1,
        multimodal_layers: int = 1,
        feed_forward: FeedForwardKind = "gelu",
        mlp_ratio: float = 4.0,
        norm: Norm = "layer_norm",
        fusion: Fusion = "cross_attention",
        alternating: bool = False,
        memory_norm: bool = False,
        text_pooling: TextPooling = "end",
        positions: Positions = "learned",
        tie_weights: bool = True,
        packed: bool = True,
        dropout: float = 0.0,
        embeds_text: bool = True,
    ) -> None:
        super().__init__()
        if unimodal_layers < 1 or multimodal_layers < 1:
            raise ArgumentError(
                f"unimodal_layers: {unimodal_layers} and multimodal_layers={multimodal_layers} must both be at "
                "least 1: the first give the text embedding, the others see the image"
            )
        # Of three matrices, a gated feed-forward layer has two thirds of the hidden units each.
        check_heads(width, num_heads)
        check_ratio("mlp_ratio", mlp_ratio, round(width * 2 / 3) if feed_forward == "swiglu" else width)
        check_dropout(dropout)
        if fusion == "prefix" and (alternating or memory_norm):
            raise ArgumentError(
                "fusion: a prefix has no cross-attention, so alternating and memory_norm would do nothing; "
                "set both to false"
            )
        if text_pooling != "end" and not embeds_text:
            raise ArgumentError(
                f"text_pooling: {text_pooling} does nothing, since a text encoder embeds the texts; use end or "
                "text_encoder=own"
            )
        if positions == "rotary" and (width // num_heads) % 2:
            raise ArgumentError(f"positions: rotary needs an even head width, not {width} / {num_heads}")
        self.width, self.vocab_size, self.max_tokens = width, vocab_size, max_tokens
        self.fusion, self.text_pooling, self.packed = fusion, text_pooling, packed
        self.text_width, self.records_attention = width, True
        self.token_embedding = nn.Embedding(vocab_size, width)
        with keyed_start("cls_embedding"):
            self.cls_embedding = None if text_pooling == "end" else nn.Parameter(INIT_STD * torch.randn(width))
        # The class token has a position of its own, behind all others.
        num_positions = max_tokens + (text_pooling != "end")
        self.position_embedding = nn.Parameter(torch.zeros(num_positions, width)) if positions == "learned" else None
        fixed = sinusoidal_positions(num_positions, width) * INIT_STD if positions == "sinusoidal" else None
        self.register_buffer("fixed_positions", fixed, persistent=False)
        cross_width = memory_width if fusion == "cross_attention" else None
        self.prefix_projection = None
        if fusion == "prefix" and memory_width != width:
            self.prefix_projection = nn.Linear(memory_width, width)

        rotary = positions == "rotary"
        layer = LayerSettings(width, num_heads, mlp_ratio, rotary, dropout, feed_forward, norm, num_key_value_heads)
        self.unimodal_layers = nn.ModuleList(DecoderLayer(layer) for _ in range(unimodal_layers))
        self.multimodal_layers = nn.ModuleList(
            DecoderLayer(layer, cross_width, alternating, memory_norm) for _ in range(multimodal_layers)
        )
        self.norm = NORMS[norm](width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        # Sub-layers of a multimodal layer that write into the residual stream.
        writers = 2 + (cross_width is not None) + alternating
        init_linears(self, num_residual_layers=2 * unimodal_layers + writers * multimodal_layers)
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
        """See ``Decoder``. The pooled vector is the state at the end token or at the class token (``text_pooling``)."""
        if self.cls_embedding is None:
            states, place = self.unimodal(tokens, lengths), lengths - 1
        else:
            states, place = self._unimodal_with_cls(tokens, lengths)
        rows = torch.arange(len(tokens), device=tokens.device)
        return TextStates(states[:, : tokens.shape[1]], states[rows, place])

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """See ``Decoder``. The multimodal layers go on from the states of ``text``, made here if they are not given."""
        if text is None:
            # ``fuse`` passes one more column than ``max_tokens``. The last column is a target only and has no position.
            text_states = self.unimodal(tokens[:, : self.max_tokens], lengths.clamp(max=self.max_tokens))
        else:
            text_states = text.states
        return self.multimodal(text_states[:, : tokens.shape[1] - 1], lengths - 1, memory, image_index, record)

    def hidden_by(
        self, tokens: Tensor, lengths: Tensor, memory: Tensor, image_index: Tensor, pattern: TextPattern
    ) -> Tensor:
        """See ``Decoder``. All layers follow the pattern, so that the states of ``text`` cannot be reused."""
        inputs, lengths = tokens[:, :-1], lengths - 1
        self._check_length(inputs.shape[1])
        layout = Layout.of_lengths(lengths, inputs.shape[1], self.packed)
        x = self.token_embedding(layout.pack(inputs))
        if pattern.masked is not None:
            assert pattern.mask_embedding is not None, "masked inputs need an embedding"
            x = torch.where(layout.pack(pattern.masked)[:, None], pattern.mask_embedding, x)
        x = self._add_positions(x, torch.arange(inputs.shape[1], device=x.device).expand_as(inputs), layout)
        mask = visible_mask(pattern.visible, inputs.shape[1])
        for layer in self.unimodal_layers:
            x = layer(x, layout, mask=mask)
        return self.multimodal(layout.pad(x), lengths, memory, image_index, visible=pattern.visible)

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """See ``mmlm.model.text_places.CountsPlaces``."""
        return Layout.places(lengths, num_tokens, self.packed)

    def _embed(self, tokens: Tensor, layout: Layout, offset: int = 0) -> Tensor:
        """int64[C, T] -> packed float[P, D], positions counted from ``offset``."""
        positions = torch.arange(offset, offset + tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self._add_positions(self.token_embedding(layout.pack(tokens)), positions, layout)

    def _add_positions(self, x: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Adds the position embedding at ``positions`` int64[C, T] to packed float[P, D]; nothing for rotary ones."""
        table = self.position_embedding if self.position_embedding is not None else self.fixed_positions
        return x if table is None else x + F.embedding(layout.pack(positions), table)

    def unimodal(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, T, D]: states of the text alone; values at padding are undefined."""
        self._check_length(tokens.shape[1])
        layout = Layout.of_lengths(lengths, tokens.shape[1], self.packed)
        x = self._embed(tokens, layout)
        for layer in self.unimodal_layers:
            x = layer(x, layout)
        return layout.pad(x)

    def _unimodal_with_cls(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Unimodal layers with a class token: int64[C, T], int64[C] -> states float[C, T + 1 or 2, D], column int64[C].

        ``column`` is where each caption's class token stands.
        """
        self._check_length(tokens.shape[1])
        assert self.cls_embedding is not None, "only called with a class token"
        shifted = self.text_pooling == "cls_shifted_mask"
        # The class token stands right behind its caption: a causal mask then hides it from all other tokens and hides
        # all padding from it. With the shifted mask, one padding token stands in between for the class token to attend
        # to, unless the caption fills ``max_tokens``.
        after_pad = shifted & (lengths < self.max_tokens)
        place, num_tokens = lengths + after_pad, tokens.shape[1] + 1 + shifted
        columns = torch.arange(num_tokens, device=tokens.device)[None, :]
        is_cls = columns == place[:, None]
        tokens = F.pad(tokens, (0, num_tokens - tokens.shape[1])).masked_fill(
            columns >= lengths[:, None], OPEN_CLIP_PAD
        )
        layout = Layout.of_lengths(place + 1, num_tokens, self.packed)
        # The class token's position is the last of the table whatever the caption's length; the padding token in front
        # of it has the position of its column.
        x = torch.where(layout.pack(is_cls)[:, None], self.cls_embedding, self.token_embedding(layout.pack(tokens)))
        positions = columns.clamp(max=self.max_tokens - 1).masked_fill(is_cls, self.max_tokens)
        x = self._add_positions(x, positions, layout)
        mask = None
        if shifted:
            # Causal, but the class token does not attend to itself if a padding token stands in front of it.
            itself = is_cls[:, :, None] & is_cls[:, None, :] & after_pad[:, None, None]
            mask = ((columns <= columns.T) & ~itself)[:, None]
        for layer in self.unimodal_layers:
            x = layer(x, layout, mask=mask)
        return layout.pad(x), place

    def multimodal(
        self,
        states: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        record: AttentionRecord | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The multimodal layers: states of the text, and memory -> float[P, D] at real positions, after the last norm.

        Args:
            states: float[C, T, D].
            lengths: int64[C], number of real positions of each caption; P is their sum.
            memory: float[B, M, Dm].
            image_index: int64[C], the row of ``memory`` each caption reads, or ``TEXT_ONLY``.
            record: collects each layer's weights over the memory, float32[C, H, T, M].
            visible: int64[C], number of leading positions that every position attends to; None is causal attention.
        """
        if self.fusion == "prefix":
            # Self-attention over [prefix, text] in every layer.
            prefix = rows_of(self._prefix(memory), image_index).to(states.dtype)
            seen = prefix_mask(memory.shape[1], states.shape[1], image_index, visible)
            layers, norm = self.multimodal_layers, self.norm
            return read_prefixed(layers, norm, prefix, states, lengths, seen, self.packed, record)
        mask = None if visible is None else visible_mask(visible, states.shape[1])
        layout = Layout.of_lengths(lengths, states.shape[1], self.packed)
        x = layout.pack(states)
        for layer in self.multimodal_layers:
            x = layer(x, layout, memory=memory, image_index=image_index, mask=mask, cross_record=record)
        return real_rows(self.norm(x), layout, lengths)

    def _prefix(self, memory: Tensor) -> Tensor:
        """Memory float[B, M, Dm] -> prefix embeddings float[B, M, D]."""
        return memory if self.prefix_projection is None else self.prefix_projection(memory)

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.max_tokens:
            raise ValueError(f"{num_tokens} tokens are more than the decoder's max_tokens {self.max_tokens}")

    def start_decoding(self, memory: Tensor, room: int | None = None) -> DecoderCache:
        """See ``Decoder``: an empty cache, with all that the layers read of the images."""
        room = self.max_tokens if room is None else room
        unimodal = [KeyValueCache(room) for _ in self.unimodal_layers]
        if self.fusion == "prefix":
            prefix = self._prefix(memory).to(self.token_embedding.weight.dtype)
            return DecoderCache(len(memory), unimodal, prefix_caches(self.multimodal_layers, prefix, room))
        layers = [cast(DecoderLayer, layer) for layer in self.multimodal_layers]
        keys_values = [layer.memory_keys_values(memory) for layer in layers]
        return DecoderCache(len(memory), unimodal, [KeyValueCache(room) for _ in layers], keys_values)

    def decode(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """See ``Decoder``."""
        self._check_length(cache.num_tokens + tokens.shape[1])
        layout = Layout(len(tokens), tokens.shape[1], None)
        x = self._embed(tokens, layout, offset=cache.num_tokens)
        for layer, kept in zip(self.unimodal_layers, cache.unimodal, strict=True):
            x = layer(x, layout, cache=kept)
        memories: Sequence[tuple[Tensor, Tensor] | None] = cache.memory or [None] * len(self.multimodal_layers)
        for layer, kept, memory in zip(self.multimodal_layers, cache.multimodal, memories, strict=True):
            x = layer(x, layout, memory=memory, cache=kept)
        return self.head(self.norm(layout.pad(x)))
