"""Nested values compared to the last bit."""

from collections.abc import Collection, Mapping
from typing import Any

import torch


def assert_same(first: Any, second: Any, where: str = "", but: Collection[str] = ()) -> None:
    """Bit for bit, tensors of one type included; keys of mappings in ``but`` are not looked at."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
        assert first.dtype == second.dtype, where
    elif isinstance(first, Mapping):
        assert first.keys() == second.keys(), where
        for key in first:
            if key not in but:
                assert_same(first[key], second[key], f"{where}.{key}", but)
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}.{index}", but)
    else:
        assert first == second, where
