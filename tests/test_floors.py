"""The one-way rule: a file imports only from floors below, or from its own folder, and never inside a function."""

import ast
from pathlib import Path

import pytest

import mmlm

ROOT = Path(mmlm.__file__).parent
FLOORS = {
    1: (
        "checkpoint",
        "checkpoint_files",
        "checkpoint_sharded",
        "flow",
        "agreement",
        "diagnosis",
        "errors",
        "wording",
        "distributed",
        "freeze",
        "gated",
        "keyed_random",
        "layer_decay",
        "local_files",
        "lock",
        "lora",
        "muon",
        "loss_scale",
        "nested",
        "optim",
        "optimizer_state",
        "precision",
        "ranks",
        "slurm",
        "spikes",
        "stop",
        "train_state",
        "troubles",
        "update",
        "weights",
        "window",
    ),
    2: ("data", "model", "objectives", "checkpoint_writer", "metrics", "environment", "watchdog", "repeated_blocks"),
    3: ("loop", "parallel", "preflight", "evaluation", "report"),
    4: ("parts", "config_errors", "config", "hydra_config"),
    5: ("runs", "resume", "build", "cell"),
    6: (
        "cli",
        "train",
        "training",
        "worker",
        "launch",
        "evaluate",
        "caption",
        "compare",
        "pretrained_config",
        "pretrained",
        "model_card",
        "export",
        "bench",
        "convert",
    ),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
ENTRY_POINTS = 6
"""Where ``__main__.py`` stands, whatever folder it is in."""
FILES = sorted(file for file in ROOT.rglob("*.py") if file.name != "__init__.py")
OPTIONAL = {"wandb", "open_clip", "resvg_py", "peft", "liger_kernel", "cut_cross_entropy"}
"""Heavy packages that a function may import when it is called for."""


def place_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_go_down(file):
    here = place_of(file)
    floor = ENTRY_POINTS if file.name == "__main__.py" else FLOOR_OF[here]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmlm."):
            there = node.module.split(".")[1]
            same_place = there == here or FLOOR_OF[there] == floor == 1
            same_floor_of_files = FLOOR_OF[there] == floor in (4, 5, 6)
            assert FLOOR_OF[there] < floor or same_place or same_floor_of_files, f"{here} imports {node.module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_import_hides_in_a_function(file):
    for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {str(name).split(".")[0] for name in names} <= OPTIONAL, f"line {node.lineno}"


def test_every_file_has_a_floor():
    assert {place_of(file) for file in FILES} == set(FLOOR_OF)
