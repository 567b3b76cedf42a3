"""A tiny study: two axes of two levels, as a file of one's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mmlm.cli.checked_config import compose_typed
from mmlm.studies.grid import Cell, cells_of
from mmlm.studies.place import Place
from mmlm.studies.settings import Study
from mmlm.studies.study_file import read_study
from tests.conftest import TINY

AXES = {
    "loss": {"joint": [], "captions": ["objective.weights.contrastive=0"]},
    "rate": {"low": ["optim.lr=0.001"], "high": ["optim.lr=0.004"]},
}
TUNED = {
    "axes": {"loss": AXES["loss"], "batch": {"low": [], "high": ["train.batch_size=8"]}},
    "tuning": {"values": [0.01, 0.02], "steps": 2, "seed": 9},
}
"""What to change for a study that tunes the learning rate."""


@pytest.fixture
def write_study(tmp_path: Path, shapes: Path) -> Callable[..., Path]:
    """``write_study(**changes)``: the file ``small.yaml`` of a study of four tiny cells, with other keys."""

    def write(**changes: object) -> Path:
        base = [*TINY, f"data.train.folder={shapes}", f"data.validation.validation.folder={shapes}"]
        values = {
            "question": "Does it help?",
            "base": [token for token in base if not token.startswith("runs=")],
            "axes": AXES,
            "baseline": "joint+low",
            "seeds": [0, 1],
            "splits": ["validation"],
            "metrics": ["captioning/CIDEr-D", "image_to_text/R@1"],
            **changes,
        }
        file = tmp_path / "small.yaml"
        file.write_text(
            yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False)
        )
        return file

    return write


@pytest.fixture
def runs(tmp_path: Path) -> str:
    """The folder of all runs."""
    return str(tmp_path / "runs")


@pytest.fixture
def place(runs: str) -> Place:
    """The folder of the study."""
    return Place.of(runs, "small")


@pytest.fixture
def opened(write_study: Callable[..., Path], runs: str) -> Callable[..., tuple[Study, dict[str, Cell]]]:
    """``opened(**changes)``: the study of ``write_study`` and its cells."""

    def read(**changes: object) -> tuple[Study, dict[str, Cell]]:
        study = read_study(write_study(**changes))
        return study, cells_of(study, compose_typed, runs)

    return read
