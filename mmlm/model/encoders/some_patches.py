"""A timm Transformer's pass over some of an image's patches."""

import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn


class PatchChoice(nn.Module):
    """Stands where timm draws its patch dropout: keeps those patches that it has been told to, or all.

    timm's own draws from torch's generator, so that what is left out would depend on ranks and micro-batches.
    """

    def __init__(self, num_prefix_tokens: int, returns_choice: bool) -> None:
        super().__init__()
        self.num_prefix_tokens, self.returns_choice = num_prefix_tokens, returns_choice
        self.kept: Tensor | None = None
        """int64[B, K]: patches to keep, ascending; None keeps all."""

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """float[B, prefix + N, D] -> float[B, prefix + K, D]; EVA wants ``kept`` too, for its rotary positions."""
        if self.kept is not None:
            prefix, patches = tokens.tensor_split([self.num_prefix_tokens], dim=1)
            tokens = torch.cat([prefix, patches.take_along_dim(self.kept[:, :, None], dim=1)], dim=1)
        return (tokens, self.kept) if self.returns_choice else tokens


def let_choose(backbone: VisionTransformer | Eva) -> None:
    """Makes ``features_of`` possible; nothing else changes."""
    backbone.patch_drop = PatchChoice(backbone.num_prefix_tokens, isinstance(backbone, Eva))


def features_of(backbone: VisionTransformer | Eva, images: Tensor, kept: Tensor | None) -> Tensor:
    """float[B, 3, S, S], int64[B, K] -> timm's features float[B, prefix + K, D] of a pass without the other patches.

    All patches are embedded and get their positions; those that are not in ``kept`` enter no block. A stem whose tokens
    see more than their own patch has read them all the same, unless ``only_visible`` has hidden them.
    """
    backbone.patch_drop.kept = kept
    try:
        return backbone.forward_features(images)
    finally:
        backbone.patch_drop.kept = None


def num_kept(grid: tuple[int, int], patch_dropout: float) -> int:
    """Patches that patch dropout leaves of an image: at least 1."""
    return max(1, int(grid[0] * grid[1] * (1 - patch_dropout)))


def only_visible(images: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """Normalised float[B, 3, S, S] with 0, the mean colour, in place of every patch that is not in int64[B, K]."""
    rows, columns = grid
    visible = images.new_zeros(len(images), rows * columns).scatter(1, kept, 1.0).view(-1, 1, rows, columns)
    height, width = images.shape[2] // rows, images.shape[3] // columns
    return images * visible.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
