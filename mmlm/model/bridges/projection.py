"""Projections: every token of the encoder becomes one memory token (LLaVA)."""

from torch import Tensor, nn

from mmlm.model.blocks import FeedForward, identity_attention, init_linears
from mmlm.model.protocols import BridgeOutput


class MlpProjection(nn.Module):
    """Projects each patch token by a two-layer MLP (LLaVA 1.5, arXiv:2310.03744) and pools by the mean.

    Made to feed a prefix of the decoder; a cross-attending decoder takes the same memory. LLaVA has no image
    embedding: here it is the mean of the normalised patch tokens.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        mlp_ratio: float = 2.0,
        num_prefix_tokens: int = 0,
        pool: bool = True,
    ) -> None:
        super().__init__()
        self.memory_width, self.num_memory = width, num_prefix_tokens + grid[0] * grid[1]
        self.pooled_width = patch_width if pool else None
        self.patch_norm = nn.LayerNorm(patch_width)
        self.projection = FeedForward(patch_width, mlp_ratio, out_width=width)
        init_linears(self)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, N, D] and pooled float[B, Dp] or None."""
        patches = self.patch_norm(patches)
        pooled = None if self.pooled_width is None else patches.mean(dim=1)
        return BridgeOutput(memory=self.projection(patches), pooled=pooled)

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, N, N]: the identity, memory token n is patch n."""
        return identity_attention(patches)
