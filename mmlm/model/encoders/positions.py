"""Resampling of learned image positions to another grid."""

from torch import Tensor

from mmlm.core.timm_without_wandb import resample_abs_pos_embed


def resized_positions(old: Tensor, new: Tensor, grid: tuple[int, int], antialias: bool = True) -> Tensor | None:
    """Resamples the position table ``old`` bicubically to the shape of ``new``, whose patches form ``grid``.

    Tables are float[L, D] or float[1, L, D]: rows of prefix tokens (copied), then one row a patch. The patches of
    ``old`` have to form a square grid. None if ``old`` and ``new`` are not two such tables with equal prefix and width.
    """
    # ``new`` tells how many rows belong to prefix tokens; in ``old`` the same number does.
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
