"""Nested values and weights compared to the last bit."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from mmlm.experiment.experiment import Experiment


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


def weights_of(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Copies of a model's tensors."""
    return {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], prefix: str = "") -> bool:
    """Whether the tensors whose names begin with ``prefix``, one at least, are equal bit for bit."""
    keys = [key for key in first if key.startswith(prefix)]
    assert keys
    return all(torch.equal(first[key], second[key]) for key in keys)
