"""A run with ``train.compile=true`` by the real compiler logs what a run that is not compiled logs."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mmlm.record.metrics import read_metrics
from mmlm.training.reporter import OF_THE_CLOCK
from tests.conftest import Outcome

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU"),
    # What Dynamo looks at is none of ours.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

# Every step has all eight images, so that captions are padded alike: lengths that change are compiled anew, which
# takes as long again; ``test_repeated_blocks.py`` has them.
SETTINGS = (
    "decoder.dropout=0.2",
    "train.steps=2",
    "train.batch_size=8",
    "train.diagnose_every=1",
    "evaluators=retrieval",
)


@pytest.fixture
def logged(train_tiny: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Sequence[dict[str, float]]]:
    """``logged(name, *overrides)``: the rows of training of a run."""

    def train(name: str, *overrides: str) -> Sequence[dict[str, float]]:
        outcome = train_tiny(*SETTINGS, *overrides, f"name={name}")
        assert outcome.status == 0, outcome
        folder = tmp_path / "runs/caption_base" / name / "seed=0"
        return [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]

    return train


def test_a_compiled_run_logs_what_a_plain_one_does(logged, monkeypatch):
    """With two objectives, a diagnosis of each step, which differentiates the compiled graphs before the backward pass
    does, and dropout, whose draws are torch's own. And with blocks that are computed again in the backward pass.
    """
    # One process compiles: a pool of them would import torch first.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    torch._dynamo.reset()
    plain = logged("plain")
    assert "train/gradient_cosine/contrastive-captioning" in plain[0]
    compiled = logged("compiled", "train.compile=true")
    again = logged("again", "train.compile=true", "train.activation_checkpointing=true")
    for found in (compiled, again):
        assert [row["step"] for row in found] == [1, 2]
        for row, expected in zip(found, plain, strict=True):
            assert row.keys() == expected.keys()
            for name in row.keys() - {"seconds", *(f"train/{name}" for name in OF_THE_CLOCK)}:
                assert math.isclose(row[name], expected[name], rel_tol=1e-3, abs_tol=1e-4), name
