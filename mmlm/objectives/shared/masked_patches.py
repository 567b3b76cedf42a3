"""The base of objectives on masked patches: the choice of the visible patches, and a small decoder for the others."""

import math

import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.computing import at_least_float32
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_random import stream
from mmlm.core.keyed_start import keyed_start
from mmlm.core.model_output import ModelSizes, VisiblePatches
from mmlm.core.ranges import check_heads
from mmlm.core.timm_without_wandb import Block
from mmlm.core.views import PatchView, StepKey, ViewInputs
from mmlm.objectives.objective import Objective

_STREAM = stream("mmlm.objectives.shared.masked_patches")


def grid_positions(grid: tuple[int, int], width: int) -> Tensor:
    """float32[R * C, width]: fixed position embeddings (arXiv:1706.03762) of a grid of R rows and C columns.

    ``width`` is a multiple of 4: a quarter each for the sine and cosine of the row, then the sine and cosine of the
    column (as in MoCo v3, arXiv:2104.02057, and MAE).
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid))  # [R * C, 2]
    angles = places[:, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class MaskedPatches(Objective):
    """The encoder sees a random share of the patches of each image, and a subclass predicts something of the others.

    A small bidirectional Transformer (MAE, arXiv:2111.06377) reads the encoder's tokens at the visible patches and a
    mask token at every other patch, with position embeddings added. Every image has the same number of masked patches,
    drawn by (seed, step, image). Unlike in MAE, class and register tokens do not go on to the decoder.

    Args:
        masked_share: share of the patches that are masked.
        width, depth, num_heads: of the decoder; ``width`` is a multiple of 4, for its fixed positions.

    Raises:
        UserError: sizes out of range, or a model whose encoder cannot see some patches only.
    """

    positions: Tensor
    """float32[N, width]: the fixed position embeddings, made by ``make_decoder``."""

    def __init__(
        self,
        masked_share: float,
        width: int,
        depth: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        if not 0 < masked_share < 1:
            raise ArgumentError(f"masked_share: {masked_share} must lie between 0 and 1, such as 0.75")
        if width < 4 or width % 4:
            raise ArgumentError(f"width: {width} must be a multiple of 4, for positions of rows and columns")
        check_heads(width, num_heads)
        if depth < 1:
            raise ArgumentError(f"depth: {depth} must be at least 1, or patches would not see each other")
        self.masked_share, self.width = masked_share, width
        # Objectives that mask the same share see the same patches.
        self.view = PatchView(f"masked {masked_share}")
        self.views = frozenset({self.view})
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.blocks = nn.Sequential(*[Block(width, num_heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def make_decoder(self, sizes: ModelSizes, out_width: int) -> None:
        """Called by a subclass's ``connect``: makes the layers before and after the small Transformer.

        ``out_width`` numbers are predicted for each patch. Raises UserError for sizes that do not fit.
        """
        if sizes.patch_size is None:
            raise UserError("encoder: masked patches need one that can see some of them only; use encoder=vit")
        num_patches = math.prod(sizes.grid)
        self.num_kept = num_patches - round(num_patches * self.masked_share)
        if not 0 < self.num_kept < num_patches:
            raise ArgumentError(
                f"masked_share: {self.masked_share} of {num_patches} patches masks {num_patches - self.num_kept}; "
                "choose a share that masks some and leaves some"
            )
        self.embedding = nn.Linear(sizes.patch_width, self.width)
        self.register_buffer("positions", grid_positions(sizes.grid, self.width), persistent=False)
        self.head = nn.Linear(self.width, out_width)
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear):
                with keyed_start(name):
                    nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        with keyed_start("head"):
            nn.init.normal_(self.head.weight, std=0.02)  # predictions start near 0, the mean of normalised targets

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """The patches that the encoder sees."""
        return {self.view: self.kept(batch, step_key)}

    def kept(self, batch: Batch, step_key: StepKey) -> Tensor:
        """int64[B, K]: the numbers of the K patches of each image that the encoder sees, ascending."""
        return step_key.chosen(batch.image_key, len(self.positions), self.num_kept, _STREAM)

    def num_masked(self, batch: Batch) -> Tensor:
        """int64[]: the number of masked patches of all images of the micro-batch."""
        return torch.tensor(len(batch.images) * (len(self.positions) - self.num_kept), device=batch.images.device)

    def predictions(self, visible: VisiblePatches, masked: Tensor) -> Tensor:
        """float[B, M, out_width], at least float32: predictions for the patches int64[B, M] from the visible ones."""
        tokens = self.embedding(visible.tokens)
        # Mask tokens everywhere, then the encoder's tokens over them at the patches that it saw.
        every = self.mask_token.to(tokens.dtype).expand(len(tokens), len(self.positions), -1)
        every = every.scatter(1, visible.kept[:, :, None].expand_as(tokens), tokens)
        states = self.norm(self.blocks(every + self.positions.to(tokens.dtype)))
        predicted = self.head(states.take_along_dim(masked[:, :, None], dim=1))
        return at_least_float32(predicted)


def patches_of(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """uint8[B, 3, R * H, C * W] -> uint8[B, R * C, H * W * 3] for patches of H x W pixels, colour channels last."""
    height, width = patch_size
    cut = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, 3, R, H, C, W]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def statistics_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    """uint8[..., P] -> mean and variance (divided by P) of x / 255, float64[...] each.

    Computed from sums of integers, which have no rounding: the result does not depend on how a batch is split.
    """
    count = patches.shape[-1]
    total, squares = patches.sum(dim=-1, dtype=torch.int64), patches.int().square().sum(dim=-1, dtype=torch.int64)
    variance = (count * squares - total.square()).double() / (255 * count) ** 2
    return total.double() / (255 * count), variance


def other_patches(kept: Tensor, num_patches: int) -> Tensor:
    """int64[B, K] -> int64[B, N - K]: for each row the numbers of ``range(N)`` that are not in it, ascending."""
    is_kept = torch.zeros(len(kept), num_patches, dtype=torch.int8, device=kept.device).scatter(1, kept, 1)
    # A stable sort of zeros and ones puts the zeros, the other patches, first and in order.
    return is_kept.argsort(dim=1, stable=True)[:, : num_patches - kept.shape[1]]
