"""Convolutional abstractor: residual convolutions on the patches, means to a smaller grid, convolutions again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_counts
from mmlm.model.attention import identity_attention
from mmlm.model.blocks import init_linears
from mmlm.model.protocols import BridgeOutput


class ResidualConvolution(nn.Module):
    """One bottleneck of a RegNet-Y (arXiv:2003.13678), at one width, on a grid with the channels last::

        hidden = SiLU(norm(mix(SiLU(norm(enter(x))))))            mix: depthwise 3 x 3 convolution, zeros around
        gate   = sigmoid(excite(SiLU(squeeze(mean of hidden over the grid))))            one number a channel
        result = SiLU(x + norm(leave(hidden * gate)))

    ``enter`` and ``leave`` are linear, and ``squeeze`` leaves a quarter of the channels (squeeze and excitation,
    arXiv:1709.01507). Each norm is a layer norm over the channels of one place of the grid: what it computes depends on
    no other place, let alone another image, where the batch norm of a RegNet would depend on the whole batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # No biases where a norm follows: it has its own.
        self.enter = nn.Linear(width, width, bias=False)
        self.enter_norm = nn.LayerNorm(width)
        with keyed_start("mix"):
            self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.mix_norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, max(1, width // 4))
        self.excite = nn.Linear(max(1, width // 4), width)
        self.leave = nn.Linear(width, width, bias=False)
        self.leave_norm = nn.LayerNorm(width)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, R, C, D] -> float[B, R, C, D], for R rows and C columns."""
        hidden = F.silu(self.enter_norm(self.enter(x)))
        hidden = self.mix(hidden.movedim(-1, 1)).movedim(1, -1)
        hidden = F.silu(self.mix_norm(hidden))
        squeezed = F.silu(self.squeeze(hidden.mean(dim=(1, 2), keepdim=True)))
        hidden = hidden * self.excite(squeezed).sigmoid()
        return F.silu(x + self.leave_norm(self.leave(hidden)))


class ConvolutionalAbstractor(nn.Module):
    """Convolves the patches, averages them into few, convolves again (Honeybee's C-Abstractor, arXiv:2312.06742)::

        fine   = residual convolutions(enter(norm(patches)))                     on the grid of patches
        coarse = residual convolutions(mean over each cell of fine)              [B, M, hidden_width], on a grid
        memory = project(coarse)                                                 [B, M, D]

    There are ``depth`` residual convolutions (``ResidualConvolution``) before the means, and as many after. There are
    ``side`` x ``side`` cells whatever the grid of patches is, or with None half as many along each side as there are
    patches (rounded up), like the authors' 12 x 12 for 24 x 24 patches. With m cells along n patches, cell i holds
    those from floor(i n / m) up to, and without, ceil((i + 1) n / m), so that neighbouring cells share patches where m
    does not divide n. The pooled vector is the mean of the normalised patches.

    The normalisation is the one of the authors' code, a layer norm over the channels of each place of the grid, so that
    an image never depends on the others of its batch.

    Differs from that code, which adds a learned position to each patch (here the zeros around the grid tell the
    convolutions where the edges are, and the encoder has told the patches their positions), changes the width inside of
    the first residual convolution (here ``enter``, a linear layer, does it before), and projects with two layers (here
    one). It has no image embedding, which the pooled vector serves here. The convolutions start as PyTorch starts them.

    Raises:
        UserError: a ``side`` below 1 or above the shorter side of the grid; a ``hidden_width`` below 2 or a ``depth``
            below 1; prefix tokens, which have no place on the grid; or patch dropout, which leaves holes in it.
    """

    def __init__(
        self,
        patch_width: int,
        grid: tuple[int, int],
        width: int,
        side: int | None = None,
        hidden_width: int = 128,
        depth: int = 3,
        num_prefix_tokens: int = 0,
        drops_patches: bool = False,
        pool: bool = True,
    ) -> None:
        super().__init__()
        check_counts({"width": width})
        rows, columns = grid
        if side is not None and not 1 <= side <= min(grid):
            raise ArgumentError(
                f"side: {side} must be at least 1 and at most the shorter side of the grid of {rows} x {columns} "
                f"patches; use 1 to {min(grid)}, or null for half of each side"
            )
        if hidden_width < 2:
            raise ArgumentError(
                f"hidden_width: {hidden_width} must be at least 2, as a norm over one channel is the same everywhere"
            )
        if depth < 1:
            raise ArgumentError(f"depth: {depth} must be at least 1")
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
        self.grid = grid
        self.row_cells = _cells(rows, -(-rows // 2) if side is None else side)
        self.column_cells = _cells(columns, -(-columns // 2) if side is None else side)
        self.num_memory = len(self.row_cells) * len(self.column_cells)
        self.memory_width, self.pooled_width = width, patch_width if pool else None
        self.patch_norm = nn.LayerNorm(patch_width)
        self.enter = nn.Linear(patch_width, hidden_width)
        self.project = nn.Linear(hidden_width, width)
        init_linears(self)
        self.fine, self.coarse = nn.Sequential(), nn.Sequential()
        for name, blocks in (("fine", self.fine), ("coarse", self.coarse)):
            for i in range(depth):
                with keyed_start(f"{name}.{i}"):
                    blocks.append(ResidualConvolution(hidden_width))

    def _cell_means(self, image: Tensor) -> Tensor:
        """float[B, R, C, D] -> float[B, R', C', D]: the mean of each cell, for R' x C' cells."""
        # Rows first, then columns: a cell is a rectangle. Written out, as the gradient of PyTorch's adaptive pooling
        # adds up in any order on a GPU, so that no run could be repeated to the bit.
        rows = torch.stack([image[:, first:end].mean(dim=1) for first, end in self.row_cells], dim=1)
        return torch.stack([rows[:, :, first:end].mean(dim=2) for first, end in self.column_cells], dim=2)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] and pooled float[B, Dp] or None."""
        normed = self.patch_norm(patches)
        fine = self.fine(self.enter(normed).unflatten(1, self.grid))
        coarse = self.coarse(self._cell_means(fine)).flatten(1, 2)
        return BridgeOutput(
            memory=self.project(coarse), pooled=None if self.pooled_width is None else normed.mean(dim=1)
        )

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: even on the patches of a memory token's own cell.

        That is the share of each patch in the pooling. The convolutions are left out: they also mix in the places
        around, with weights of either sign that differ from channel to channel, so that no share follows from them.
        """
        # Averaged like features, the one-hot rows of the identity give the share of each patch in each cell.
        one_hot = identity_attention(patches[:1]).unflatten(1, self.grid)
        return self._cell_means(one_hot).flatten(1, 2).expand(len(patches), -1, -1)


def _cells(length: int, count: int) -> list[tuple[int, int]]:
    """First patch and the one after the last of each of ``count`` cells, along ``length`` patches."""
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
