"""Gated cross-attention (Flamingo): blocks that let a language model read images, inserted by hooks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.model.attention import AttentionRecord, MultiHeadAttention
from mmlm.model.blocks import FeedForward, init_linears
from mmlm.model.packing import rows_of


@dataclass(frozen=True)
class Memory:
    """The image memory that one block reads during a pass of the language model."""

    source: Tensor | tuple[Tensor, Tensor]
    """Memory float[B, M, Dm], or its keys and values from ``keys_values``, float[B, H, M, D/H] each."""
    image_index: Tensor | None = None
    """int64[C]: the row each caption reads, or ``TEXT_ONLY``; None: caption i reads row i, or of B * n row i // n."""
    record: AttentionRecord | None = None
    """Collects the attention weights over the memory, float32[C, H, T, M]; None in training."""


class GatedCrossAttention(nn.Module):
    """The block that Flamingo (arXiv:2204.14198, section 2.2) puts in front of a language model's layers::

        x = x + tanh(gate_attention) * attention(norm(x), memory)
        x = x + tanh(gate_feed_forward) * feed_forward(norm(x))

    Both gates start at 0, so that at step 0 the block is the identity and only the gates have a gradient other than 0.
    Differs from the paper: linear layers have biases, and for a text-only caption the whole block is the identity, so
    that its pass is the language model's own (the paper keeps the feed-forward layer).

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
        # Set by ``reading`` for the time of a pass: the hook gets the layer's arguments, which hold no image.
        self._memory: Memory | None = None

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, M, Dm] -> keys and values, float[B, H, M, D/H] each. Called once an image before decoding."""
        return self.attention.keys_values(memory)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Hidden states of a layer float[C, T, D] -> float[C, T, D]."""
        # In training, keys and values are projected here and not by the caller: under FSDP a block's weights are whole
        # only during its own forward.
        keys, values = self.keys_values(memory.source) if isinstance(memory.source, Tensor) else memory.source
        index = memory.image_index
        if index is not None:
            keys, values = rows_of(keys, index), rows_of(values, index)
        queries = self.attention.heads(self.attention.query(self.attention_norm(x)))
        if index is None and memory.record is None:
            read = self.attention.output(self.attention.attend_copies(queries, keys, values))
        else:
            read = self.attention.output(self.attention.attend(queries, keys, values, record=memory.record))
        seen = x + self.gate_attention.tanh() * read
        seen = seen + self.gate_feed_forward.tanh() * self.feed_forward(self.feed_forward_norm(seen))
        # ``rows_of`` gave a text-only caption the row of some image: it keeps ``x``.
        return seen if index is None else torch.where((index != TEXT_ONLY)[:, None, None], seen, x)

    def insert_before(self, layer: nn.Module) -> None:
        """Registers a hook that runs this block on the hidden states ``layer`` is called with, inside ``reading``.

        A hook, and not a wrapper module, leaves the language model as it is: its parameters keep their names (for
        freezing, low-rank adapters and ``init_from``), and its code can still read attributes of its layers.
        """
        layer.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(
        self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook: the layer's arguments with its hidden states replaced; None leaves them as they are."""
        if self._memory is None:
            return None
        # transformers' models pass the hidden states first, or by this name.
        if args:
            return (self(args[0], self._memory), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"], self._memory)}


@contextmanager
def reading(blocks: Sequence[GatedCrossAttention], memories: Sequence[Memory]) -> Iterator[None]:
    """Gives each block its memory for passes of the language model in this block; outside, blocks do nothing."""
    for block, memory in zip(blocks, memories, strict=True):
        block._memory = memory
    try:
        yield
    finally:
        for block in blocks:
            block._memory = None
