"""Sizes that several bridges are given, checked alike."""

from collections.abc import Mapping

from mmlm.errors import UserError


def check_sizes(counts: Mapping[str, int], width: int, mlp_ratio: float) -> None:
    """UserError for one of ``counts`` (by its key) below 1, or a feed-forward layer without hidden units."""
    for key, value in counts.items():
        if value < 1:
            raise UserError(f"bridge.{key}: {value} must be at least 1")
    if int(width * mlp_ratio) < 1:
        raise UserError(f"bridge.mlp_ratio: {mlp_ratio} leaves no hidden units; use one above 0, such as 4.0")
