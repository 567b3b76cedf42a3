"""Reconstruction: the pixels of masked patches from those that are left."""

import math
from collections.abc import Mapping

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmlm.errors import UserError
from mmlm.flow import Batch, Drawn, Loss, ModelOutput, ModelSizes, Moment, PatchView, Stream, Term, VisiblePatches
from mmlm.objectives.objective import Objective
from mmlm.objectives.patches import grid_positions, other_patches, patches_of, statistics_of

FLAT = 1e-6
"""Added to a patch's variance (of pixels in [0, 1]): a patch of one colour is all 0."""


class MaskedReconstruction(Objective):
    """Masked autoencoding (MAE, arXiv:2111.06377) as an auxiliary objective.

    Of each image the encoder sees a random share of its patches; a small bidirectional Transformer reads its tokens, a
    mask token in every other place and the places, and predicts the pixels of the masked patches::

        loss = sum_{b, n masked} mean_i (prediction[b, n, i] - target[b, n, i])^2  /  masked patches of all ranks

    where i runs through the H * W * 3 values of a patch in [0, 1]. With ``normalise`` the target is that patch's pixels
    less their mean, divided by ``sqrt(variance + 1e-6)``, both over i; MAE divides by n - 1 for the variance and
    normalises colours first. Unlike there class and register tokens do not go on to the decoder. Every image has as
    many masked patches, drawn by its id and the step.

    The figure ``explained`` (with ``normalise``) is the share of the targets' variance that predictions explain, 1 less
    squared errors over squares of targets: 0 for predicting each patch's mean.

    Args:
        masked_share: share of the patches that are masked.
        width, depth, num_heads: of the decoder; ``width`` is a multiple of 4, for its fixed positions.
        normalise: whether to predict normalised pixels.

    Raises:
        UserError: sizes out of range, or a model whose encoder cannot see some patches only.
    """

    def __init__(
        self,
        masked_share: float = 0.75,
        width: int = 96,
        depth: int = 2,
        num_heads: int = 3,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < masked_share < 1:
            raise UserError(f"masked_share: {masked_share} must lie between 0 and 1, such as 0.75")
        if width < 4 or width % 4:
            raise UserError(f"width: {width} must be a multiple of 4, for positions of rows and columns")
        if num_heads < 1 or width % num_heads:
            raise UserError(f"num_heads: {num_heads} does not divide the width {width}; choose one that does")
        if depth < 1:
            raise UserError(f"depth: {depth} must be at least 1, or patches would not see each other")
        self.masked_share, self.width, self.normalise = masked_share, width, normalise
        # Objectives that mask the same share see the same patches.
        self.view = PatchView(f"masked {masked_share}")
        self.views = frozenset({self.view})
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.blocks = nn.Sequential(*[Block(width, num_heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def connect(self, sizes: ModelSizes) -> None:
        """Makes what reads the encoder's tokens and what writes a patch's pixels."""
        if sizes.patch_size is None:
            raise UserError("encoder: reconstruction needs one that can see some of its patches only; use encoder=vit")
        self.patch_size, num_patches = sizes.patch_size, math.prod(sizes.grid)
        self.num_kept = num_patches - round(num_patches * self.masked_share)
        if not 0 < self.num_kept < num_patches:
            raise UserError(
                f"masked_share: {self.masked_share} of {num_patches} patches masks {num_patches - self.num_kept}; "
                "choose a share that masks some and leaves some"
            )
        self.embedding = nn.Linear(sizes.patch_width, self.width)
        self.register_buffer("positions", grid_positions(sizes.grid, self.width), persistent=False)
        self.head = nn.Linear(self.width, math.prod(self.patch_size) * 3)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.head.weight, std=0.02)  # starts near each patch's mean

    def draw(self, batch: Batch, moment: Moment) -> Drawn:
        """The patches of each image that the encoder sees."""
        num_patches = len(self.positions)
        return {self.view: moment.chosen(batch.image_key, num_patches, self.num_kept, Stream.MASKED_PATCHES)}

    def counts(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The masked patches, and with ``normalise`` the variance float64[] of their targets."""
        num_masked = len(self.positions) - self.num_kept
        counts = {"patches": torch.tensor(len(batch.images) * num_masked, device=batch.images.device)}
        if not self.normalise:
            return counts
        masked = other_patches(self.draw(batch, moment)[self.view], len(self.positions))
        _, variance = statistics_of(self._pixels(batch.images, masked))
        return {**counts, "variance": (variance / (variance + FLAT)).sum()}

    def _pixels(self, images: Tensor, masked: Tensor) -> Tensor:
        """uint8[B, 3, S, S], int64[B, M] -> uint8[B, M, H * W * 3]."""
        return patches_of(images, self.patch_size).take_along_dim(masked[:, :, None], dim=1)

    def targets(self, images: Tensor, masked: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8[B, 3, S, S], int64[B, M] -> [B, M, H * W * 3]: what is to be predicted of those patches."""
        pixels = self._pixels(images, masked)
        target = pixels.to(dtype) / 255
        if not self.normalise:
            return target
        mean, variance = (value[:, :, None].to(dtype) for value in statistics_of(pixels))
        return (target - mean) / (variance + FLAT).sqrt()

    def predictions(self, visible: VisiblePatches, masked: Tensor) -> Tensor:
        """What the encoder saw, and int64[B, M] -> float[B, M, H * W * 3], at least float32."""
        tokens = self.embedding(visible.tokens)
        every = self.mask_token.to(tokens.dtype).expand(len(tokens), len(self.positions), -1)
        every = every.scatter(1, visible.kept[:, :, None].expand_as(tokens), tokens)
        states = self.norm(self.blocks(every + self.positions.to(tokens.dtype)))
        predicted = self.head(states.take_along_dim(masked[:, :, None], dim=1))
        return predicted.to(torch.promote_types(predicted.dtype, torch.float32))

    def forward(self, output: ModelOutput, batch: Batch, moment: Moment, counts: Mapping[str, Tensor]) -> Loss:
        """One term, and the figure ``explained`` if targets are normalised."""
        visible = output.patches[self.view]
        masked = other_patches(visible.kept, len(self.positions))
        predicted = self.predictions(visible, masked)
        target = self.targets(batch.images, masked, predicted.dtype)
        error = (predicted - target).square().mean(dim=-1).sum()
        terms = {"reconstruction": Term(error, counts["patches"].to(error.dtype))}
        if not self.normalise:
            return Loss(terms)
        explained = target.square().mean(dim=-1).sum() - error.detach()
        return Loss(terms, {"explained": Term(explained, counts["variance"].to(error.dtype))})
