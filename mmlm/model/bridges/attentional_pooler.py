"""Attentional pooling: learned queries attend to the encoder's tokens (CoCa)."""

from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_heads
from mmlm.model.attention import MultiHeadAttention, attention_weights, identity_attention
from mmlm.model.blocks import FeedForward, init_linears
from mmlm.model.protocols import BridgeOutput

Contrastive = Literal["shared", "parallel", "cascaded"]
"""The contrastive query's layer: the captioning queries' own, a second one beside it, or a second one behind it."""


class AttentionalPooler(nn.Module):
    """Attentional pooling with learned queries (CoCa, arXiv:2205.01917, section 3.2; Set Transformer, 1810.00825).

    ``num_queries`` captioning queries make the memory, one contrastive query makes the pooled vector:

    - ``contrastive="shared"``: one attention layer for all queries, the contrastive query first. Not in the paper.
    - ``"parallel"``: a pooler for each task, each reading the encoder's tokens.
    - ``"cascaded"``: a pooler for each task, the contrastive one reading the memory (the paper's default).

    With ``num_queries`` None the memory is the encoder's tokens themselves (normalised and projected), and only the
    pooled vector comes from a query. With ``pool`` false (the encoder pools) there is no contrastive query.

    Differs from CoCa: a feed-forward layer follows each pooler if ``feed_forward`` is true.

    Raises:
        UserError: fewer queries than 1, a ``contrastive`` that has no effect, or ``num_heads`` that do not divide
            ``width``.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        num_heads: int = 4,
        num_queries: int | None = 16,
        feed_forward: bool = False,
        contrastive: Contrastive = "shared",
        num_prefix_tokens: int = 0,
        pool: bool = True,
    ) -> None:
        super().__init__()
        _check_queries(num_queries, contrastive, pool)
        check_heads(width, num_heads)
        self.memory_width, self.pooled_width = width, width if pool else None
        self.num_memory = num_queries or num_prefix_tokens + grid[0] * grid[1]
        self.contrastive = contrastive
        # With "shared", row 0 is the contrastive query; the captioning queries follow.
        with keyed_start("queries"):
            self.queries = nn.Parameter(torch.randn((num_queries or 0) + (pool and contrastive == "shared"), width))
        self.query_norm = nn.LayerNorm(width)
        self.patch_norm = nn.LayerNorm(patch_width)
        self.attention = MultiHeadAttention(width, num_heads, memory_width=patch_width)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), FeedForward(width)) if feed_forward else None
        self.memory_projection = nn.Linear(patch_width, width) if num_queries is None else None
        self.norm = nn.LayerNorm(width)
        self.contrastive_pooler = None
        if contrastive != "shared":
            read_width = patch_width if contrastive == "parallel" else width
            # A pooler with one query and no pooled vector of its own: its single memory token is our pooled vector. Its
            # start has a key of its own, or its query would start like the first captioning query.
            with keyed_start("contrastive_pooler"):
                self.contrastive_pooler = AttentionalPooler(
                    read_width, grid, width, num_heads, num_queries=1, feed_forward=feed_forward, pool=False
                )
        init_linears(self)

    def _queries(self, num_images: int) -> Tensor:
        """float[B, H, Q, d]: the projected queries, the same for each image (expanded, not copied)."""
        queries = self.attention.heads(self.attention.query(self.query_norm(self.queries))[None])
        return queries.expand(num_images, -1, -1, -1)

    def _read(self, normed: Tensor) -> Tensor:
        """Normalised tokens float[B, N, Dp] -> float[B, Q, D]: each query's result, after the last norm."""
        keys, values = self.attention.keys_values(normed)
        pooled = self.attention.output(self.attention.attend(self._queries(len(normed)), keys, values))
        if self.feed_forward is not None:
            pooled = pooled + self.feed_forward(pooled)
        return self.norm(pooled)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] (M = ``num_queries`` or N) and pooled float[B, D] or None."""
        normed = self.patch_norm(patches)
        read = self._read(normed)
        if self.contrastive_pooler is not None:
            source = patches if self.contrastive == "parallel" else read
            return BridgeOutput(memory=read, pooled=self.contrastive_pooler(source).memory[:, 0])
        pools = self.pooled_width is not None
        memory = read[:, int(pools) :] if self.memory_projection is None else self.memory_projection(normed)
        return BridgeOutput(memory=memory, pooled=read[:, 0] if pools else None)

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: the captioning queries' attention, averaged over heads (identity without queries)."""
        if self.memory_projection is not None:
            return identity_attention(patches)
        keys, _ = self.attention.keys_values(self.patch_norm(patches))
        weights = attention_weights(self._queries(len(patches)), keys).mean(dim=1)
        # The contrastive query, if it is among them, stands first and is not in the memory.
        return weights[:, weights.shape[1] - self.num_memory :]


def _check_queries(num_queries: int | None, contrastive: Contrastive, pool: bool) -> None:
    """UserError for too few queries, or for a combination in which a setting has no effect."""
    if num_queries is not None and num_queries < 1:
        raise ArgumentError(f"num_queries: {num_queries} must be at least 1; null keeps the encoder's own tokens")
    if num_queries is None and not pool:
        raise ArgumentError("num_queries: null leaves nothing to pool where the encoder pools; use bridge=mlp")
    if contrastive == "shared":
        return
    if not pool:
        raise ArgumentError(f"contrastive: {contrastive} has no effect where the encoder pools; use contrastive=shared")
    if num_queries is None:
        raise ArgumentError(
            f"contrastive: {contrastive} needs captioning queries, and num_queries is null; set "
            "num_queries or use contrastive=shared"
        )
