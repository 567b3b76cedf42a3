"""Bridges: from the encoder's patch tokens to the decoder's memory and the vector of the image embedding."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmlm.errors import UserError
from mmlm.model.blocks import FeedForward, MultiHeadAttention, attention_weights, init_linears


@dataclass(frozen=True)
class BridgeOutput:
    """What a bridge makes of patch tokens."""

    memory: Tensor
    """float[B, M, Dm]: what the decoder attends to, or is prefixed with."""
    pooled: Tensor
    """float[B, Dp]: what the image embedding is projected from."""


class Bridge(Protocol):
    """What the model needs of a bridge. A bridge is built with ``patch_width``, the encoder's token width."""

    memory_width: int
    pooled_width: int

    def __call__(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory and pooled vector."""
        ...

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: how much of each patch is in each memory token; rows sum to 1."""
        ...


class AttentionalPooler(nn.Module):
    """Attentional pooling with learned queries (CoCa, arXiv:2205.01917, section 3.2; Set Transformer, 1810.00825).

    ``num_queries`` captioning queries make the memory, one more makes the pooled vector. As in the paper's parallel
    variant each reads the encoder's tokens. With ``num_queries`` None the memory is the encoder's tokens themselves
    (normalised and projected), and only the pooled vector comes from a query.

    Differs from CoCa: queries share one attention layer (the paper uses one pooler a task); a feed-forward layer
    follows if ``feed_forward`` is true.
    """

    def __init__(
        self,
        patch_width: int,
        width: int,
        num_heads: int = 4,
        num_queries: int | None = 16,
        feed_forward: bool = False,
    ) -> None:
        super().__init__()
        if num_queries is not None and num_queries < 1:
            raise UserError(
                f"bridge.num_queries: {num_queries} must be at least 1; null keeps the encoder's own tokens"
            )
        self.memory_width = self.pooled_width = width
        self.num_memory_queries = num_queries or 0
        self.queries = nn.Parameter(torch.randn(self.num_memory_queries + 1, width))
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
        """float[B, N, Dp] -> memory float[B, M, D] (M = ``num_queries`` or N) and pooled float[B, D]."""
        patches = self.patch_norm(patches)
        keys, values = self.attention.keys_values(patches)
        pooled = self.attention.output(self.attention.attend(self._queries(len(patches)), keys, values))
        if self.feed_forward is not None:
            pooled = pooled + self.feed_forward(pooled)
        pooled = self.norm(pooled)
        memory = pooled[:, 1:] if self.memory_projection is None else self.memory_projection(patches)
        return BridgeOutput(memory=memory, pooled=pooled[:, 0])

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: the captioning queries' attention, averaged over heads (identity without queries)."""
        if self.memory_projection is not None:
            return _identity(patches)
        keys, _ = self.attention.keys_values(self.patch_norm(patches))
        return attention_weights(self._queries(len(patches)), keys).mean(dim=1)[:, 1:]


class MlpProjection(nn.Module):
    """Projects each patch token by a two-layer MLP (LLaVA 1.5, arXiv:2310.03744) and pools by the mean.

    Made to feed a prefix of the decoder; a cross-attending decoder takes the same memory. LLaVA has no image
    embedding: here it is the mean of the normalised patch tokens.
    """

    def __init__(self, patch_width: int, width: int, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        self.memory_width = width
        self.pooled_width = patch_width
        self.patch_norm = nn.LayerNorm(patch_width)
        self.projection = FeedForward(patch_width, mlp_ratio, out_width=width)
        init_linears(self)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, N, D] and pooled float[B, Dp]."""
        patches = self.patch_norm(patches)
        return BridgeOutput(memory=self.projection(patches), pooled=patches.mean(dim=1))

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, N, N]: the identity, memory token n is patch n."""
        return _identity(patches)


def _identity(patches: Tensor) -> Tensor:
    batch, num_patches, _ = patches.shape
    return torch.eye(num_patches, device=patches.device).expand(batch, -1, -1)
