"""One layer of our Transformer decoder: what it is made of, and the order of its sub-layers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.flow import TEXT_ONLY
from mmlm.model.blocks import (
    FEED_FORWARDS,
    NORMS,
    AttentionRecord,
    FeedForwardKind,
    KeyValueCache,
    Layout,
    MultiHeadAttention,
    Norm,
    rotate,
    rows_of,
)


@dataclass(frozen=True)
class LayerSettings:
    """What all layers of a decoder have in common; see ``TransformerDecoder``."""

    width: int
    num_heads: int
    mlp_ratio: float
    rotary: bool
    dropout: float
    feed_forward: FeedForwardKind = "gelu"
    norm: Norm = "layer_norm"
    num_key_value_heads: int | None = None


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, then (with ``memory_width``) cross-attention, then feed-forward.

    Args:
        settings: widths and kinds.
        memory_width: width of the memory, Dm; None leaves cross-attention out.
        alternating: a feed-forward of its own between self- and cross-attention.
        memory_norm: normalise the memory before its keys and values.
    """

    def __init__(
        self,
        settings: LayerSettings,
        memory_width: int | None = None,
        alternating: bool = False,
        memory_norm: bool = False,
    ) -> None:
        super().__init__()
        width, heads, kv_heads = settings.width, settings.num_heads, settings.num_key_value_heads
        norm, feed_forward = NORMS[settings.norm], FEED_FORWARDS[settings.feed_forward]
        self.rotary = settings.rotary
        self.self_norm = norm(width)
        self.self_attention = MultiHeadAttention(width, heads, num_key_value_heads=kv_heads)
        self.self_feed_forward_norm = norm(width) if alternating else None
        self.self_feed_forward = feed_forward(width, settings.mlp_ratio) if alternating else None
        self.cross_norm = norm(width) if memory_width else None
        self.memory_norm = norm(memory_width) if memory_width and memory_norm else None
        self.cross_attention = MultiHeadAttention(width, heads, memory_width, kv_heads) if memory_width else None
        self.feed_forward_norm = norm(width)
        self.feed_forward = feed_forward(width, settings.mlp_ratio)
        self.dropout = nn.Dropout(settings.dropout)

    def memory_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, M, Dm] -> keys and values of the cross-attention, float[B, K, M, d] each: to make them once."""
        return self.cross_attention.keys_values(memory if self.memory_norm is None else self.memory_norm(memory))

    def _self_attention(
        self,
        x: Tensor,
        layout: Layout,
        mask: Tensor | None,
        cache: KeyValueCache | None,
        record: AttentionRecord | None,
    ) -> Tensor:
        attention = self.self_attention
        projected = layout.pad(torch.cat([attention.query(x), attention.key_value(x)], dim=-1))
        widths = [x.shape[-1], attention.key_width, attention.key_width]
        queries, keys, values = (attention.heads(part) for part in projected.split(widths, dim=-1))
        offset = cache.length if cache else 0
        if self.rotary:
            queries, keys = rotate(queries, offset), rotate(keys, offset)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        out = attention.attend(queries, keys, values, mask=mask, causal=mask is None, record=record)
        return attention.output(layout.pack(out))

    def _cross_attention(
        self,
        x: Tensor,
        layout: Layout,
        memory: tuple[Tensor, Tensor],
        image_index: Tensor | None,
        record: AttentionRecord | None,
    ) -> Tensor:
        attention = self.cross_attention
        keys, values = memory
        queries = attention.heads(layout.pad(attention.query(self.cross_norm(x))))
        if image_index is not None:
            keys, values = rows_of(keys, image_index), rows_of(values, image_index)
        out = attention.output(layout.pack(attention.attend(queries, keys, values, record=record)))
        if image_index is not None:
            has_image = (image_index != TEXT_ONLY).to(out.dtype)
            out = out * layout.pack(has_image[:, None, None].expand(-1, layout.num_tokens, 1))
        return out

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        image_index: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        self_record: AttentionRecord | None = None,
        cross_record: AttentionRecord | None = None,
    ) -> Tensor:
        """Packed states float[P, D] -> float[P, D].

        ``memory`` is float[B, M, Dm], or what ``memory_keys_values`` made of it; ``image_index`` int64[C] says which of
        its rows each caption reads (None: caption i reads row i); a text-only caption gets nothing from it.
        """
        x = x + self.dropout(self._self_attention(self.self_norm(x), layout, mask, cache, self_record))
        if self.self_feed_forward is not None:
            x = x + self.dropout(self.self_feed_forward(self.self_feed_forward_norm(x)))
        if self.cross_attention is not None:
            # Keys and values are made in here while training: outside of its forward a layer's weights may be sharded
            # over ranks.
            memory = self.memory_keys_values(memory) if isinstance(memory, Tensor) else memory
            x = x + self.dropout(self._cross_attention(x, layout, memory, image_index, cross_record))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


Positions = Literal["sinusoidal", "learned", "rotary"]
