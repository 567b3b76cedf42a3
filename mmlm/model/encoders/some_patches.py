"""Runs a timm Transformer over a chosen subset of an image's patches (patch dropout, masked images)."""

import torch
from torch import Tensor, nn

from mmlm.core.timm_without_wandb import Eva, VisionTransformer


class PatchChoice(nn.Module):
    """Replaces timm's patch dropout module: keeps the patches listed in ``kept``, or all of them.

    timm's module draws from torch's generator, which would make the choice depend on ranks and micro-batches.
    """

    def __init__(self, num_prefix_tokens: int, returns_choice: bool) -> None:
        super().__init__()
        self.num_prefix_tokens, self.returns_choice = num_prefix_tokens, returns_choice
        self.kept: Tensor | None = None
        """int64[B, K]: patches to keep, ascending; None keeps all. Set by ``features_of`` for one forward pass."""

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """float[B, prefix + N, D] -> float[B, prefix + K, D].

        EVA also expects ``kept`` in return (``returns_choice``), to pick the rotary positions of these patches.
        """
        if self.kept is not None:
            prefix, patches = tokens.tensor_split([self.num_prefix_tokens], dim=1)
            tokens = torch.cat([prefix, patches.take_along_dim(self.kept[:, :, None], dim=1)], dim=1)
        return (tokens, self.kept) if self.returns_choice else tokens


def let_choose(backbone: VisionTransformer | Eva) -> None:
    """Prepares ``backbone`` for ``features_of``; its ordinary forward pass stays the same."""
    # timm annotates the attribute with its own two classes, and calls whatever stands there.
    backbone.patch_drop = PatchChoice(backbone.num_prefix_tokens, isinstance(backbone, Eva))  # type: ignore[assignment]


def features_of(backbone: VisionTransformer | Eva, images: Tensor, kept: Tensor | None) -> Tensor:
    """float[B, 3, S, S], int64[B, K] -> timm's features float[B, prefix + K, D] of the patches in ``kept`` only.

    timm embeds all patches and adds their positions, then leaves out those that are not in ``kept``: no block sees
    them. A convolutional stem, whose tokens span more than their own patch, does read their pixels, unless
    ``only_visible`` has blanked them. ``let_choose`` has to be called once before.
    """
    # Passed through an attribute, since timm's ``forward_features`` takes nothing but images.
    choice = backbone.patch_drop
    assert isinstance(choice, PatchChoice), "let_choose has put it there"
    choice.kept = kept
    try:
        return backbone.forward_features(images)
    finally:
        choice.kept = None


def num_kept(grid: tuple[int, int], patch_dropout: float) -> int:
    """K: patches of an image that survive patch dropout, at least 1."""
    return max(1, int(grid[0] * grid[1] * (1 - patch_dropout)))


def only_visible(images: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """Blanks all patches that are not in ``kept`` int64[B, K].

    ``images`` float[B, 3, S, S] are normalised, so that the blank value 0 is the mean colour.
    """
    rows, columns = grid
    visible = images.new_zeros(len(images), rows * columns).scatter(1, kept, 1.0).view(-1, 1, rows, columns)
    height, width = images.shape[2] // rows, images.shape[3] // columns
    return images * visible.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
