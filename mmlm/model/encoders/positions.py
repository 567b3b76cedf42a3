"""Learned positions of image patches at another grid."""

from timm.layers import resample_abs_pos_embed
from torch import Tensor


def resized_positions(old: Tensor, new: Tensor, grid: tuple[int, int], antialias: bool = True) -> Tensor | None:
    """A table of positions float[L, D] or float[1, L, D] at the length of ``new``; None if these are no such tables.

    The rows of ``new`` are those of prefix tokens, which are kept, then ``grid``; the patches of ``old`` stand on a
    square grid and are resampled bicubically.
    """
    prefix = new.shape[-2] - grid[0] * grid[1] if new.ndim in (2, 3) else -1
    if prefix < 0 or old.ndim != new.ndim or (old.shape[:-2], old.shape[-1]) != (new.shape[:-2], new.shape[-1]):
        return None
    side = max(old.shape[-2] - prefix, 0) ** 0.5
    if not side.is_integer() or side == 0:
        return None
    table = old.view(1, *old.shape[-2:])
    return resample_abs_pos_embed(
        table, list(grid), [int(side)] * 2, num_prefix_tokens=prefix, antialias=antialias
    ).view_as(new)
