"""Lightweight downsample projector: an MLP on each patch, means over windows, positions by a convolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_counts
from mmlm.model.attention import identity_attention
from mmlm.model.blocks import init_linears
from mmlm.model.protocols import BridgeOutput


class LightweightDownsampleProjector(nn.Module):
    """Projects the patches, averages windows of them, adds positions (MobileVLM V2's LDP, arXiv:2402.03766)::

        windows = mean over each window of MLP(norm(patches))           [B, M, D], on a grid
        memory  = windows + depthwise 3 x 3 convolution(windows)        [B, M, D]

    The MLP is two linear layers with a GELU, both ``width`` wide. A window is a square of ``stride`` x ``stride``
    patches; where ``stride`` does not divide a side of the grid, the last windows of that side hold the patches that
    are left, and average over those alone. The zeros around the grid tell the convolution where a window stands.
    The pooled vector is the mean of the normalised patches.

    Differs from the paper, which averages over windows that make a fixed number of tokens and has no image embedding:
    here the size of the windows is set, the tokens are normalised first, and the pooled vector serves the image
    embedding. The convolution starts as PyTorch starts it.

    Raises:
        UserError: a ``stride`` below 1 or longer than the shorter side of the grid; prefix tokens, which have no place
            on the grid; or patch dropout, which leaves holes in it.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        stride: int = 2,
        num_prefix_tokens: int = 0,
        drops_patches: bool = False,
        pool: bool = True,
    ) -> None:
        super().__init__()
        check_counts({"width": width})
        rows, columns = grid
        if not 1 <= stride <= min(grid):
            raise ArgumentError(
                f"stride: {stride} must be at least 1 and at most the shorter side of the grid of {rows} x {columns} "
                f"patches; use 1 to {min(grid)}"
            )
        if num_prefix_tokens:
            raise UserError(
                f"{type(self).__name__} takes patches only, and the encoder keeps {num_prefix_tokens} prefix tokens "
                "(class, registers); use an encoder without them or another bridge, such as bridge=mlp"
            )
        if drops_patches:
            raise UserError(
                f"{type(self).__name__} needs every patch, and the encoder leaves some out in training; "
                "use encoder.patch_dropout=0 or another bridge, such as bridge=mlp"
            )
        self.grid, self.stride = grid, stride
        self.window_grid = -(-rows // stride), -(-columns // stride)
        self.num_memory = self.window_grid[0] * self.window_grid[1]
        self.memory_width, self.pooled_width = width, patch_width if pool else None
        self.patch_norm = nn.LayerNorm(patch_width)
        self.expand = nn.Sequential(nn.Linear(patch_width, width), nn.GELU())
        self.project = nn.Linear(width, width)
        init_linears(self)
        with keyed_start("position"):
            self.position = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def _window_means(self, tokens: Tensor) -> Tensor:
        """float[B, N, D] -> float[B, M, D]: the mean of each window, row by row."""
        image = tokens.transpose(1, 2).unflatten(2, self.grid)
        # ceil_mode keeps the windows that are cut off by the edge; they are divided by the patches that they hold.
        means = F.avg_pool2d(image, self.stride, ceil_mode=True, count_include_pad=False)
        return means.flatten(2).transpose(1, 2)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] and pooled float[B, Dp] or None."""
        normed = self.patch_norm(patches)
        # The mean of a linear layer's outputs is its output for the mean: the second layer reads windows, not patches,
        # which gives the same sum for 1 / stride^2 of the work.
        windows = self.project(self._window_means(self.expand(normed)))
        image = windows.transpose(1, 2).unflatten(2, self.window_grid)
        memory = (image + self.position(image)).flatten(2).transpose(1, 2)
        return BridgeOutput(memory=memory, pooled=None if self.pooled_width is None else normed.mean(dim=1))

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: even on the patches of a memory token's own window.

        The convolution is left out: it also mixes in the eight windows around, with weights of either sign that differ
        from channel to channel, so that no share of a patch follows from them.
        """
        # Averaged like features, the one-hot rows of the identity give the share of each patch in each window.
        return self._window_means(identity_attention(patches[:1])).expand(len(patches), -1, -1)
