"""Images cut into the patches of a grid, row by row: their pixels, their statistics, and where they stand."""

import math

import torch
from torch import Tensor


def patches_of(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """uint8[B, 3, R * H, C * W] -> uint8[B, R * C, H * W * 3] for patches of H x W pixels; colours vary fastest."""
    height, width = patch_size
    cut = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, 3, R, H, C, W]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def statistics_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    """uint8[..., P] -> mean and variance (divided by P) of x / 255, float64[...] each.

    From sums of integers, so that they depend on nothing but the pixels: not on how a batch is split.
    """
    count = patches.shape[-1]
    total, squares = patches.sum(dim=-1, dtype=torch.int64), patches.int().square().sum(dim=-1, dtype=torch.int64)
    variance = (count * squares - total.square()).double() / (255 * count) ** 2
    return total.double() / (255 * count), variance


def other_patches(kept: Tensor, num_patches: int) -> Tensor:
    """int64[B, K] -> int64[B, N - K]: those of ``range(N)`` that are not in each row, ascending."""
    is_kept = torch.zeros(len(kept), num_patches, dtype=torch.int8, device=kept.device).scatter(1, kept, 1)
    return is_kept.argsort(dim=1, stable=True)[:, : num_patches - kept.shape[1]]


def grid_positions(grid: tuple[int, int], width: int) -> Tensor:
    """float32[R * C, width]: the sine and cosine positions (arXiv:1706.03762) of the row, then those of the column.

    ``width`` is a multiple of 4, a quarter for each of the four (as in MoCo v3, arXiv:2104.02057, and MAE).
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid))  # [R * C, 2]
    angles = places[:, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
