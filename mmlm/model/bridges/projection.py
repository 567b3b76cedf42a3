"""Projections: each encoder token, or each square of patches, becomes one memory token (LLaVA)."""

from torch import Tensor, nn

from mmlm.core.ranges import check_counts, check_ratio
from mmlm.model.blocks import init_linears
from mmlm.model.bridges.pixel_shuffle import PixelShuffle
from mmlm.model.protocols import BridgeOutput


class _Projection(nn.Module):
    """Base of both projections: normalises the tokens, joins squares of them, projects; pools by the mean."""

    def __init__(
        self, patch_width: int, width: int, pixel_shuffle: PixelShuffle, projection: nn.Module, pool: bool
    ) -> None:
        super().__init__()
        self.memory_width, self.num_memory = width, pixel_shuffle.num_tokens
        self.pooled_width = patch_width if pool else None
        self.pixel_shuffle = pixel_shuffle
        self.patch_norm = nn.LayerNorm(patch_width)
        self.projection = projection
        init_linears(self)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, N / r^2, D] and pooled float[B, Dp] or None.

        Raises UserError if ``pixel_shuffle`` is above 1 and patches are missing.
        """
        patches = self.patch_norm(patches)
        pooled = None if self.pooled_width is None else patches.mean(dim=1)
        return BridgeOutput(memory=self.projection(self.pixel_shuffle(patches)), pooled=pooled)

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: the identity, or 1 / r^2 on each patch of a memory token's square."""
        return self.pixel_shuffle.attention(patches)


class LinearProjection(_Projection):
    """Projects each token of the encoder by one linear layer (LLaVA, arXiv:2304.08485) and pools by the mean.

    With ``pixel_shuffle`` r > 1 each square of r x r patches is one input (Idefics3, arXiv:2408.12637), which makes
    the memory r^2 times shorter. Meant for a decoder with a prefix; one with cross-attention takes the same memory.

    Differs from LLaVA: the tokens are normalised first, and their mean is the image embedding (LLaVA has none).

    Raises:
        UserError: a ``pixel_shuffle`` that does not fit the grid, or prefix tokens or dropped patches with one above 1.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        pixel_shuffle: int = 1,
        num_prefix_tokens: int = 0,
        drops_patches: bool = False,
        pool: bool = True,
    ) -> None:
        check_counts({"width": width})
        shuffle = PixelShuffle(grid, pixel_shuffle, num_prefix_tokens, drops_patches)
        projection = nn.Linear(pixel_shuffle**2 * patch_width, width)
        super().__init__(patch_width, width, shuffle, projection, pool)


class MlpProjection(_Projection):
    """Projects each token of the encoder by a two-layer MLP (LLaVA 1.5, arXiv:2310.03744) and pools by the mean.

    ``pixel_shuffle`` works as in ``LinearProjection``. The MLP has ``mlp_ratio * patch_width`` hidden units whatever
    ``pixel_shuffle`` is, so that joining patches widens its first layer only.

    Differs from LLaVA 1.5: the tokens are normalised first, the hidden width is set by ``mlp_ratio`` (there it is the
    decoder's width), and the tokens' mean is the image embedding (LLaVA has none).

    Raises:
        UserError: no hidden units, a ``pixel_shuffle`` that does not fit the grid, or prefix tokens or dropped patches
            with one above 1.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        mlp_ratio: float = 2.0,
        pixel_shuffle: int = 1,
        num_prefix_tokens: int = 0,
        drops_patches: bool = False,
        pool: bool = True,
    ) -> None:
        check_counts({"width": width})
        check_ratio("mlp_ratio", mlp_ratio, patch_width)
        hidden = int(patch_width * mlp_ratio)
        shuffle = PixelShuffle(grid, pixel_shuffle, num_prefix_tokens, drops_patches)
        inputs = pixel_shuffle**2 * patch_width
        projection = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width))
        super().__init__(patch_width, width, shuffle, projection, pool)
