"""Our Transformer text decoder: unimodal layers give the text embedding, then multimodal layers see the image."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import UserError
from mmlm.core.flow import TEXT_ONLY, TextPattern
from mmlm.core.keyed_start import keyed_start
from mmlm.model.blocks import (
    INIT_STD,
    NORMS,
    AttentionRecord,
    FeedForwardKind,
    KeyValueCache,
    Layout,
    Norm,
    init_linears,
    rows_of,
    sinusoidal_positions,
    visible_mask,
)
from mmlm.model.protocols import Fusion, TextStates
from mmlm.model.transformer_layers import DecoderLayer, LayerSettings, Positions

TextPooling = Literal["end", "cls", "cls_shifted_mask"]

OPEN_CLIP_PAD = 0
"""open_clip's padding id, which is also a token (a ``!`` that a word goes on after)."""


@dataclass
class DecoderCache:
    """What decoding keeps between steps: the keys and values of each layer; the image's are computed once."""

    unimodal: list[KeyValueCache]
    multimodal: list[KeyValueCache]
    memory: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Cross-attention keys and values of each multimodal layer, float[B, K, M, d]; empty with a prefix."""
    prefix: Tensor | None = None
    """float[B, M, D] still to be read before the first token; None afterwards and without a prefix."""

    @property
    def num_tokens(self) -> int:
        """Text tokens read so far."""
        return self.unimodal[0].length


class TransformerDecoder(nn.Module):
    """Causal Transformer decoder (CoCa, arXiv:2205.01917): text alone first, then text with the image.

    The unimodal layers never see the image; the text embedding is made of the state at the end token, or at a learned
    class token after it. The multimodal layers get the bridge's memory by ``cross_attention`` or as a causal ``prefix``
    in front of the text (LLaVA, arXiv:2304.08485).

    Differs from CoCa by default: the end token, the last that a causal layer sees, plays the part of CoCa's class token
    (``text_pooling``); a multimodal layer is one self-attention, cross-attention and feed-forward, pre-norm
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
        fusion: how the memory enters.
        alternating: a multimodal layer is self-attention with a feed-forward, then cross-attention with another
            (open_clip's CoCa), instead of one feed-forward after both.
        memory_norm: each multimodal layer normalises the memory before its keys and values (open_clip's CoCa).
        text_pooling: what the text embedding is made of. ``end``: the state at the end token. ``cls``: the state at a
            learned class token after it, which no other token sees, at a position of its own. ``cls_shifted_mask``:
            the class token of open_clip's released CoCa weights, whose mask is off by one: it sees one padding token
            and not itself, unless the caption fills ``max_tokens``. Only ``end`` where texts have
            an encoder of their own.
        positions: ``sinusoidal`` and ``learned`` are added to the token embedding; ``rotary`` turns queries and keys,
            in prefix mode counting the prefix.
        max_tokens: longest caption, start and end included.
        tie_weights: share the token embedding with the output projection (arXiv:1608.05859).
        packed: run token-wise layers on real tokens only.
        dropout: probability, on the output of every sub-layer.
        embeds_text: whether texts are embedded by ``text``, and not by an encoder of their own.
    """

    vocabulary = None
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
            raise UserError(
                f"decoder: unimodal_layers={unimodal_layers} and multimodal_layers={multimodal_layers} must both be at "
                "least 1: the first give the text embedding, the others see the image"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"decoder.dropout: {dropout} must lie in [0, 1); 0 turns it off")
        if fusion == "prefix" and (alternating or memory_norm):
            raise UserError(
                "decoder.fusion: a prefix has no cross-attention, so alternating and memory_norm would do nothing; "
                "set both to false"
            )
        if text_pooling != "end" and not embeds_text:
            raise UserError(
                f"decoder.text_pooling: {text_pooling} does nothing, since a text encoder embeds the texts; use end or "
                "text_encoder=own"
            )
        if positions == "rotary" and (width // num_heads) % 2:
            raise UserError(f"decoder.positions: rotary needs an even head width, not {width} / {num_heads}")
        self.width, self.vocab_size, self.max_tokens = width, vocab_size, max_tokens
        self.fusion, self.text_pooling, self.packed = fusion, text_pooling, packed
        self.text_width, self.records_attention = width, True
        self.token_embedding = nn.Embedding(vocab_size, width)
        with keyed_start("cls_embedding"):
            self.cls_embedding = None if text_pooling == "end" else nn.Parameter(INIT_STD * torch.randn(width))
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
        """See ``Decoder``; the pooled vector is the state at the end token or at the class token."""
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
        """See ``Decoder``; goes on from the states of ``text``."""
        if text is None:
            # The last column is only a target: it may be one more than there are positions.
            text_states = self.unimodal(tokens[:, : self.max_tokens], lengths.clamp(max=self.max_tokens))
        else:
            text_states = text.states
        return self.multimodal(text_states[:, : tokens.shape[1] - 1], lengths - 1, memory, image_index, record)

    def hidden_by(
        self, tokens: Tensor, lengths: Tensor, memory: Tensor, image_index: Tensor, pattern: TextPattern
    ) -> Tensor:
        """See ``Decoder``; all layers read by the pattern."""
        inputs, lengths = tokens[:, :-1], lengths - 1
        self._check_length(inputs.shape[1])
        layout = Layout.of_lengths(lengths, inputs.shape[1], self.packed)
        x = self.token_embedding(layout.pack(inputs))
        if pattern.masked is not None:
            x = torch.where(layout.pack(pattern.masked)[:, None], pattern.mask_embedding, x)
        x = self._placed(x, torch.arange(inputs.shape[1], device=x.device).expand_as(inputs), layout)
        mask = visible_mask(pattern.visible, inputs.shape[1])
        for layer in self.unimodal_layers:
            x = layer(x, layout, mask=mask)
        return self.multimodal(layout.pad(x), lengths, memory, image_index, visible=pattern.visible)

    def _embed(self, tokens: Tensor, layout: Layout, offset: int = 0) -> Tensor:
        """int64[C, T] -> packed float[P, D], positions counted from ``offset``."""
        positions = torch.arange(offset, offset + tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self._placed(self.token_embedding(layout.pack(tokens)), positions, layout)

    def _placed(self, x: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Packed float[P, D] with the position embedding of ``positions`` int64[C, T] added, if there is one."""
        table = self.position_embedding if self.position_embedding is not None else self.fixed_positions
        return x if table is None else x + F.embedding(layout.pack(positions), table)

    def unimodal(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, T, D]: text-only states; what stands at padding means nothing."""
        self._check_length(tokens.shape[1])
        layout = Layout.of_lengths(lengths, tokens.shape[1], self.packed)
        x = self._embed(tokens, layout)
        for layer in self.unimodal_layers:
            x = layer(x, layout)
        return layout.pad(x)

    def _unimodal_with_cls(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """int64[C, T], int64[C] -> states float[C, T + 1 or 2, D] and the column int64[C] of each class token.

        It stands right behind its caption, where a causal layer hides it from all other tokens and no padding is in
        front of it; with the shifted mask one padding token stands between. Its position is ``max_tokens``, whatever
        the caption's length.
        """
        self._check_length(tokens.shape[1])
        shifted = self.text_pooling == "cls_shifted_mask"
        after_pad = shifted & (lengths < self.max_tokens)
        place, num_tokens = lengths + after_pad, tokens.shape[1] + 1 + shifted
        columns = torch.arange(num_tokens, device=tokens.device)[None, :]
        is_cls = columns == place[:, None]
        tokens = F.pad(tokens, (0, num_tokens - tokens.shape[1])).masked_fill(
            columns >= lengths[:, None], OPEN_CLIP_PAD
        )
        layout = Layout.of_lengths(place + 1, num_tokens, self.packed)
        x = torch.where(layout.pack(is_cls)[:, None], self.cls_embedding, self.token_embedding(layout.pack(tokens)))
        positions = columns.clamp(max=self.max_tokens - 1).masked_fill(is_cls, self.max_tokens)
        x = self._placed(x, positions, layout)
        mask = None
        if shifted:
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
        """Unimodal states with the image's memory -> float[P, D] at the real positions, after the last norm.

        Args:
            states: float[C, T, D].
            lengths: int64[C], positions of each caption that count; P is their sum.
            memory: float[B, M, Dm].
            image_index: int64[C], the row of ``memory`` each caption reads, or ``TEXT_ONLY``.
            record: collects each layer's weights over the memory, float32[C, H, T, M].
            visible: int64[C], leading text positions that all others may look at; None: none, attention is causal.
        """
        if self.fusion == "prefix":
            return self._with_prefix(states, lengths, memory, image_index, record, visible)
        mask = None if visible is None else visible_mask(visible, states.shape[1])
        layout = Layout.of_lengths(lengths, states.shape[1], self.packed)
        x = layout.pack(states)
        for layer in self.multimodal_layers:
            x = layer(x, layout, memory=memory, image_index=image_index, mask=mask, cross_record=record)
        return self._real_positions(self.norm(x), layout, lengths)

    def _with_prefix(
        self,
        states: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        record: AttentionRecord | None,
        visible: Tensor | None,
    ) -> Tensor:
        num_memory, num_tokens = memory.shape[1], states.shape[1]
        prefix = rows_of(self._prefix(memory), image_index).to(states.dtype)
        layout = Layout.of_lengths(lengths + num_memory, num_memory + num_tokens, self.packed)
        mask = self._prefix_mask(num_memory, num_tokens, image_index)
        if visible is not None:
            mask[..., num_memory:, num_memory:] |= visible_mask(visible, num_tokens)
        full = AttentionRecord() if record is not None else None
        x = layout.pack(torch.cat([prefix, states], dim=1))
        for layer in self.multimodal_layers:
            x = layer(x, layout, mask=mask, self_record=full)
        if record is not None:
            record.weights += [weights[:, :, num_memory:, :num_memory] for weights in full.weights]
        text = layout.pad(self.norm(x))[:, num_memory:]
        rows = Layout.of_lengths(lengths, num_tokens)
        return rows.real(rows.pack(text))

    def _prefix(self, memory: Tensor) -> Tensor:
        return memory if self.prefix_projection is None else self.prefix_projection(memory)

    @staticmethod
    def _prefix_mask(num_memory: int, num_tokens: int, image_index: Tensor) -> Tensor:
        """bool[C, 1, M + T, M + T]: causal, and the text of a text-only caption does not see the prefix."""
        size = num_memory + num_tokens
        causal = torch.ones(size, size, dtype=torch.bool, device=image_index.device).tril()
        positions = torch.arange(size, device=image_index.device)
        text_to_prefix = (positions[:, None] >= num_memory) & (positions[None, :] < num_memory)
        hidden = text_to_prefix[None] & (image_index == TEXT_ONLY)[:, None, None]
        return (causal[None] & ~hidden)[:, None]

    def _real_positions(self, x: Tensor, layout: Layout, lengths: Tensor) -> Tensor:
        """Packed states, or all positions without packing -> float[P, D] at real positions only."""
        if layout.index is not None:
            return layout.real(x)
        rows = Layout.of_lengths(lengths, layout.num_tokens)
        return rows.real(rows.pack(layout.pad(x)))

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.max_tokens:
            raise ValueError(f"{num_tokens} tokens are more than the decoder's max_tokens {self.max_tokens}")

    def start_decoding(self, memory: Tensor) -> DecoderCache:
        """Memory float[B, M, Dm] -> an empty cache with the image's keys and values computed once."""
        cache = DecoderCache(
            unimodal=[KeyValueCache() for _ in self.unimodal_layers],
            multimodal=[KeyValueCache() for _ in self.multimodal_layers],
        )
        if self.fusion == "prefix":
            cache.prefix = self._prefix(memory)
        else:
            cache.memory = [layer.memory_keys_values(memory) for layer in self.multimodal_layers]
        return cache

    def decode(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """The next int64[B, t] tokens -> logits float[B, t, V]; the cache then holds them too."""
        self._check_length(cache.num_tokens + tokens.shape[1])
        layout = Layout(len(tokens), tokens.shape[1], None)
        x = self._embed(tokens, layout, offset=cache.num_tokens)
        for layer, kept in zip(self.unimodal_layers, cache.unimodal, strict=True):
            x = layer(x, layout, cache=kept)
        if cache.prefix is not None:
            x = torch.cat([cache.prefix.to(x.dtype), layout.pad(x)], dim=1)
            layout = Layout(x.shape[0], x.shape[1], None)
            x, cache.prefix = layout.pack(x), None
        memories = cache.memory or [None] * len(self.multimodal_layers)
        for layer, kept, memory in zip(self.multimodal_layers, cache.multimodal, memories, strict=True):
            x = layer(x, layout, memory=memory, cache=kept)
        return self.head(self.norm(layout.pad(x)[:, -tokens.shape[1] :]))
