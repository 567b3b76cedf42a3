"""Q-Former: learned queries attend to each other and, in every few layers, to the encoder's tokens (BLIP-2)."""

import torch
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start
from mmlm.model.attention import AttentionRecord, MultiHeadAttention
from mmlm.model.blocks import INIT_STD, FeedForward, check_sizes, init_linears
from mmlm.model.protocols import BridgeOutput


class QFormerLayer(nn.Module):
    """Self-attention among queries, cross-attention to patches (unless ``patch_width`` is None), feed-forward."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, patch_width: int | None) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads)
        crosses = patch_width is not None
        self.cross_norm = nn.LayerNorm(width) if crosses else None
        self.cross_attention = MultiHeadAttention(width, num_heads, patch_width) if crosses else None
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, mlp_ratio)

    def forward(self, x: Tensor, patches: Tensor, record: AttentionRecord | None = None) -> Tensor:
        """Queries float[B or 1, Q, D], patches float[B, N, Dp] -> queries float[B, Q, D] (or [1, Q, D] without cross).

        Before the first cross-attention the queries are the same for every image, so one row stands for all of them.
        ``record`` collects the weights of the cross-attention, float32[B, H, Q, N].
        """
        attention, normed = self.self_attention, self.self_norm(x)
        queries = attention.heads(attention.query(normed))
        x = x + attention.output(attention.attend(queries, *attention.keys_values(normed)))
        if self.cross_attention is not None and self.cross_norm is not None:
            attention = self.cross_attention
            queries = attention.heads(attention.query(self.cross_norm(x))).expand(len(patches), -1, -1, -1)
            read = attention.attend(queries, *attention.keys_values(patches), record=record)
            x = x + attention.output(read)
        return x + self.feed_forward(self.feed_forward_norm(x))


class QFormer(nn.Module):
    """Querying Transformer (BLIP-2, arXiv:2301.12597, section 3.1).

    ``num_queries`` learned queries pass ``depth`` layers: self-attention among the queries, cross-attention to the
    normalised patches in every ``cross_every``-th layer beginning with the first (BLIP-2: every 2nd of 12), then a
    feed-forward layer; a norm ends the stack. With ``pool``, one more query stands first and becomes the pooled vector
    (as CoCa's contrastive query does, arXiv:2205.01917). That query is not in the memory, but the other queries attend
    to it, as to each other.

    Differs from BLIP-2: starts from random weights (there from BERT); pre-norm with a last norm (there BERT's
    post-norm); no text branch, and so no objectives of its own before the decoder is attached; the pooled vector comes
    from one query (there the query most like the text is taken).

    Raises:
        UserError: a size below 1, ``cross_every`` above ``depth``, or ``num_heads`` that do not divide ``width``.
    """

    def __init__(
        self,
        patch_width: int,
        width: int,
        depth: int = 2,
        num_heads: int = 4,
        num_queries: int = 16,
        cross_every: int = 2,
        mlp_ratio: float = 4.0,
        pool: bool = True,
    ) -> None:
        super().__init__()
        check_sizes({"depth": depth, "num_queries": num_queries, "cross_every": cross_every}, width, mlp_ratio)
        if cross_every > depth:
            raise ArgumentError(f"cross_every: {cross_every} must be at most the depth, which is {depth}")
        self.memory_width, self.num_memory = width, num_queries
        self.pooled_width = width if pool else None
        # Row 0 is the pooling query, if ``pool``. The values are drawn below.
        self.queries = nn.Parameter(torch.zeros(num_queries + pool, width))
        self.patch_norm = nn.LayerNorm(patch_width)
        cross_widths = [None if index % cross_every else patch_width for index in range(depth)]
        self.layers = nn.ModuleList(QFormerLayer(width, num_heads, mlp_ratio, cross) for cross in cross_widths)
        self.norm = nn.LayerNorm(width)
        num_cross = sum(cross is not None for cross in cross_widths)
        init_linears(self, num_residual_layers=2 * depth + num_cross)
        # Small, so that the attention's result outweighs the queries themselves in the residual stream.
        with keyed_start("queries"):
            nn.init.normal_(self.queries, std=INIT_STD)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] and pooled float[B, D] or None, for any number of patches N."""
        queries = self._queries(patches)
        if self.pooled_width is None:
            return BridgeOutput(memory=queries)
        return BridgeOutput(memory=queries[:, 1:], pooled=queries[:, 0])

    def _queries(self, patches: Tensor, record: AttentionRecord | None = None) -> Tensor:
        """float[B, N, Dp] -> all queries float[B, Q, D], the pooling query included, after the last norm."""
        x, patches = self.queries[None], self.patch_norm(patches)
        for layer in self.layers:
            x = layer(x, patches, record)
        return self.norm(x)

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: attention of the last layer with cross-attention, averaged over heads.

        An approximation: ignores information that reached the queries in earlier layers, or from each other.
        """
        record = AttentionRecord()
        self._queries(patches, record)
        weights = record.weights[-1].mean(dim=1)
        # The pooling query, if there is one, stands first and is not in the memory.
        return weights[:, weights.shape[1] - self.num_memory :]
