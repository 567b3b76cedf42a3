"""Gated cross-attention (Flamingo): lets a language model read images without changing it at first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.core.flow import TEXT_ONLY
from mmlm.model.blocks import AttentionRecord, FeedForward, MultiHeadAttention, init_linears, rows_of


@dataclass(frozen=True)
class Memory:
    """What one block reads during one pass."""

    source: Tensor | tuple[Tensor, Tensor]
    """float[B, M, Dm], or the keys and values that ``keys_values`` has made of it, float[B, H, M, D/H] each."""
    image_index: Tensor | None = None
    """int64[C]: the row each caption reads, or ``TEXT_ONLY``; None: caption i reads row i."""
    record: AttentionRecord | None = None
    """Collects the weights over the memory, float32[C, H, T, M]."""


class GatedCrossAttention(nn.Module):
    """The block that Flamingo (arXiv:2204.14198, section 2.2) puts in front of a language model's layers::

        x = x + tanh(gate_attention) * attention(norm(x), memory)
        x = x + tanh(gate_feed_forward) * feed_forward(norm(x))

    Both gates start at 0, so that the language model is untouched at step 0; then only the gates have a gradient that
    is not 0. Differs from the paper: linear layers have biases, and for a text-only caption the whole block is the
    identity (the paper leaves it the feed-forward layer), so that it is the language model's own pass.

    Args:
        width: D of the language model's layers.
        num_heads: attention heads, H.
        memory_width: Dm.
        mlp_ratio: hidden units of the feed-forward, in widths.

    Raises:
        UserError: ``num_heads`` does not divide ``width``.
    """

    def __init__(self, width: int, num_heads: int, memory_width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, num_heads, memory_width)
        self.gate_attention = nn.Parameter(torch.zeros(()))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, mlp_ratio)
        self.gate_feed_forward = nn.Parameter(torch.zeros(()))
        init_linears(self)
        self._memory: Memory | None = None

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, M, Dm] -> keys and values, float[B, H, M, D/H] each: for decoding, to make them once."""
        return self.attention.keys_values(memory)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """float[C, T, D] -> float[C, T, D]."""
        # Made in here while training: outside of its forward a block's weights may be sharded over ranks.
        keys, values = self.keys_values(memory.source) if isinstance(memory.source, Tensor) else memory.source
        index = memory.image_index
        if index is not None:
            keys, values = rows_of(keys, index), rows_of(values, index)
        queries = self.attention.heads(self.attention.query(self.attention_norm(x)))
        read = self.attention.output(self.attention.attend(queries, keys, values, record=memory.record))
        seen = x + self.gate_attention.tanh() * read
        seen = seen + self.gate_feed_forward.tanh() * self.feed_forward(self.feed_forward_norm(seen))
        return seen if index is None else torch.where((index != TEXT_ONLY)[:, None, None], seen, x)

    def insert_before(self, layer: nn.Module) -> None:
        """Runs this block on the hidden states that ``layer`` is called with, while there is a memory to read.

        A hook of that one layer, so that the language model stays as it is: its parameters keep their names (for
        freezing, low-rank adapters and ``init_from``), and it may read what it wants off its layers.
        """
        layer.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(
        self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The layer's arguments with the block run on its hidden states; None leaves them as they are."""
        if self._memory is None:
            return None
        if args:
            return (self(args[0], self._memory), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"], self._memory)}


@contextmanager
def reading(blocks: Sequence[GatedCrossAttention], memories: Sequence[Memory]) -> Iterator[None]:
    """Gives each block its memory for the passes inside; outside, the language model runs without any image."""
    for block, memory in zip(blocks, memories, strict=True):
        block._memory = memory
    try:
        yield
    finally:
        for block in blocks:
            block._memory = None
