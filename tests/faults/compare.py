"""Whether two runs ended the same: bit for bit, or up to a tolerance where ranks add up in another order."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from mmlm.checkpoints.checkpoint import load_checkpoint
from mmlm.record.metrics import read_metrics
from mmlm.training.reporter import OF_THE_CLOCK
from tests.faults.trainings import STEPS

_OF_THE_CLOCK = ("seconds", "waited", *(f"train/{name}" for name in OF_THE_CLOCK))


def differences(one: Path, other: Path, tolerance: float = 0.0) -> list[str]:
    """Where two finished run folders differ: checkpoint (weights, average, state), metrics, scores, best one.

    With a tolerance the runs may have had different numbers of ranks: what each rank keeps of its own is left out.
    """
    first, second = (_contents(folder, bool(tolerance)) for folder in (one, other))
    return [line for name in first for line in differ(first[name], second[name], name, tolerance)]


def _contents(folder: Path, any_ranks: bool) -> dict[str, object]:
    checkpoint = load_checkpoint(folder / "checkpoints" / f"step={STEPS:06d}")
    state = {key: value for key, value in checkpoint.state.items() if not (any_ranks and key == "windows")}
    return {
        "weights": dict(checkpoint.weights),
        "state": state,
        "metrics": read_metrics(folder / "metrics.jsonl"),
        "scores": json.loads((folder / "scores.json").read_text()),
        "best": json.loads((folder / "checkpoints" / "best.json").read_text()),
    }


def differ(one: object, other: object, where: str, tolerance: float) -> Iterator[str]:
    """Where two nested values differ, one line each; what the clock says does not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            yield f"{where}: {sorted(map(str, one.keys() ^ other.keys()))} only in one"
        for key in one.keys() & other.keys():
            if key not in _OF_THE_CLOCK:
                yield from differ(one[key], other[key], f"{where}.{key}", tolerance)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} entries"
        for index, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from differ(left, right, f"{where}.{index}", tolerance)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if not _same_tensors(one, other, tolerance):
            apart = (one.double() - other.double()).abs().max().item() if one.shape == other.shape else math.nan
            yield f"{where}: tensors differ by {apart:g}"
    elif not _same_values(one, other, tolerance):
        yield f"{where}: {one!r} and {other!r}"


def _same_tensors(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if tolerance and one.is_floating_point():
        return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    return torch.equal(one, other)


def _same_values(one: object, other: object, tolerance: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return type(one) is type(other) and one == other
