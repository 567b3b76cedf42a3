"""One layer of our Transformer, for the decoder and the text encoder: its sub-layers and their order."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.model.attention import AttentionRecord, KeyValueCache, MultiHeadAttention
from mmlm.model.blocks import FEED_FORWARDS, NORMS, FeedForwardKind, Norm, rotate
from mmlm.model.packing import Layout, rows_of


@dataclass(frozen=True)
class LayerSettings:
    """Settings shared by all layers of one Transformer; see ``TransformerDecoder``."""

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
        """float[B, M, Dm] -> keys and values of the cross-attention, float[B, K, M, d] each.

        Called once an image before decoding, so that a step does not project the memory again.
        """
        assert self.cross_attention is not None, "only a layer with cross-attention reads a memory"
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
        # The projections run on packed tokens; attention itself needs the padded [C, T, D]. Queries, keys and values
        # are padded together: one scatter instead of three.
        projected = layout.pad(torch.cat([attention.query(x), attention.key_value(x)], dim=-1))
        widths = [x.shape[-1], attention.key_width, attention.key_width]
        queries, keys, values = (attention.heads(part) for part in projected.split(widths, dim=-1))
        # Tokens in the cache come first, so that the new ones continue at position ``cache.length``. The cache holds
        # keys that are rotated already: a key's position never changes.
        offset = cache.length if cache else 0
        if self.rotary:
            queries, keys = rotate(queries, offset), rotate(keys, offset)
        if cache is not None:
            keys, values = cache.extend(keys, values)
            if cache.shared is not None:
                return attention.output(layout.pack(attention.attend_behind(queries, cache.shared, (keys, values))))
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
        assert attention is not None, "only a layer with cross-attention reads a memory"
        assert self.cross_norm is not None, "it stands before the cross-attention"
        keys, values = memory
        queries = attention.heads(layout.pad(attention.query(self.cross_norm(x))))
        if image_index is None and len(keys) != len(queries):
            return attention.output(layout.pack(attention.attend_copies(queries, keys, values)))
        if image_index is not None:
            keys, values = rows_of(keys, image_index), rows_of(values, image_index)
        out = attention.output(layout.pack(attention.attend(queries, keys, values, record=record)))
        if image_index is not None:
            # ``rows_of`` gave a text-only caption the row of some image: nothing read from that row may reach the
            # caption.
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

        Args:
            x: packed states.
            layout: where the packed states stand in [C, T].
            memory: float[B, M, Dm], or the result of ``memory_keys_values``. None leaves cross-attention out.
            image_index: int64[C], the row of ``memory`` each caption reads; a ``TEXT_ONLY`` caption reads nothing.
                None: caption i reads row i, or with C = B * n captions row i // n.
            mask: bool[C or 1, 1, T or 1, T], true where a token may look; None is causal attention. Not with a
                ``cache`` that has a prefix, behind which text is causal.
            cache: keys and values of earlier tokens; the new tokens are appended.
            self_record: collects the weights of the self-attention, float32[C, H, T, T].
            cross_record: collects the weights over the memory, float32[C, H, T, M].
        """
        x = x + self.dropout(self._self_attention(self.self_norm(x), layout, mask, cache, self_record))
        if self.self_feed_forward is not None and self.self_feed_forward_norm is not None:
            x = x + self.dropout(self.self_feed_forward(self.self_feed_forward_norm(x)))
        if self.cross_attention is not None and memory is not None:
            # In training, keys and values are projected here and not once for all layers by the caller: under FSDP a
            # layer's weights are whole only during its own forward.
            memory = self.memory_keys_values(memory) if isinstance(memory, Tensor) else memory
            x = x + self.dropout(self._cross_attention(x, layout, memory, image_index, cross_record))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


Positions = Literal["sinusoidal", "learned", "rotary"]
"""How a Transformer knows the order of its tokens; see ``TransformerDecoder``."""
