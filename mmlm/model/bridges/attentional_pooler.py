"""Attentional pooling: learned queries read the encoder's tokens (CoCa)."""

import torch
from torch import Tensor, nn

from mmlm.errors import UserError
from mmlm.model.blocks import FeedForward, MultiHeadAttention, attention_weights, identity_attention, init_linears
from mmlm.model.protocols import BridgeOutput


class AttentionalPooler(nn.Module):
    """Attentional pooling with learned queries (CoCa, arXiv:2205.01917, section 3.2; Set Transformer, 1810.00825).

    ``num_queries`` captioning queries make the memory, one more makes the pooled vector. As in the paper's parallel
    variant each reads the encoder's tokens. With ``num_queries`` None the memory is the encoder's tokens themselves
    (normalised and projected), and only the pooled vector comes from a query. Where the encoder pools (``pool`` false)
    there is no query for the pooled vector.

    Differs from CoCa: queries share one attention layer (the paper uses one pooler a task); a feed-forward layer
    follows if ``feed_forward`` is true.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        num_heads: int = 4,
        num_queries: int | None = 16,
        feed_forward: bool = False,
        num_prefix_tokens: int = 0,
        pool: bool = True,
    ) -> None:
        super().__init__()
        if num_queries is not None and num_queries < 1:
            raise UserError(
                f"bridge.num_queries: {num_queries} must be at least 1; null keeps the encoder's own tokens"
            )
        if num_queries is None and not pool:
            raise UserError(
                "bridge.num_queries: null leaves nothing to pool where the encoder pools; use bridge=mlp"
            )
        self.memory_width, self.pooled_width = width, width if pool else None
        self.num_memory = num_queries or num_prefix_tokens + grid[0] * grid[1]
        self.queries = nn.Parameter(torch.randn((num_queries or 0) + pool, width))
        self.query_norm = nn.LayerNorm(width)
        self.patch_norm = nn.LayerNorm(patch_width)
        self.attention = MultiHeadAttention(width, num_heads, memory_width=patch_width)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), FeedForward(width)) if feed_forward else None
        self.memory_projection = nn.Linear(patch_width, width) if num_queries is None else None
        self.norm = nn.LayerNorm(width)
        init_linears(self)

    def _queries(self, num_images: int) -> Tensor:
        queries = self.attention.heads(self.attention.query(self.query_norm(self.queries))[None])
        return queries.expand(num_images, -1, -1, -1)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] (M = ``num_queries`` or N) and pooled float[B, D] or None."""
        patches = self.patch_norm(patches)
        keys, values = self.attention.keys_values(patches)
        pooled = self.attention.output(self.attention.attend(self._queries(len(patches)), keys, values))
        if self.feed_forward is not None:
            pooled = pooled + self.feed_forward(pooled)
        pooled = self.norm(pooled)
        pools = self.pooled_width is not None
        memory = pooled[:, int(pools) :] if self.memory_projection is None else self.memory_projection(patches)
        return BridgeOutput(memory=memory, pooled=pooled[:, 0] if pools else None)

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: the captioning queries' attention, averaged over heads (identity without queries)."""
        if self.memory_projection is not None:
            return identity_attention(patches)
        keys, _ = self.attention.keys_values(self.patch_norm(patches))
        weights = attention_weights(self._queries(len(patches)), keys).mean(dim=1)
        return weights[:, weights.shape[1] - self.num_memory :]
