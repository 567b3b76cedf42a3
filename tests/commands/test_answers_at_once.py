"""Help and a mistake in an argument are answered before anything heavy is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmlm
from mmlm.bench.__main__ import BENCHMARKS

PACKAGE = Path(mmlm.__file__).parent
DOORS = sorted(file.stem for file in PACKAGE.glob("[!_]*.py"))
PACKAGES = sorted(file.parent.name for file in PACKAGE.glob("*/__main__.py"))
"""Commands that are packages: ``python -m mmlm.check``."""
HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "timm",
    "transformers",
    "matplotlib",
    "pyarrow",
    "wandb",
    "tensorboard",
)
PROGRAM = """
import contextlib, importlib, io, sys

for name, *arguments in {lines}:
    command = importlib.import_module(f"mmlm.{{name}}")
    sys.argv = [f"mmlm.{{name}}", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            command.start() if name == "train" else command.report_user_errors(command.main)
        except SystemExit as end:
            status = end.code
    print((name, arguments, status, err.getvalue(), [module for module in {heavy} if module in sys.modules]))
"""


@pytest.mark.slow
def test_help_and_mistakes_are_answered_without_torch():
    lines = [[name, *arguments] for name in DOORS for arguments in (["--help"], ["rnu=a"])]
    lines += [[f"{name}.__main__", *arguments] for name in PACKAGES for arguments in (["--help"], ["--hepl"])]
    lines += [["bench.__main__", name, "--help"] for name in BENCHMARKS]
    lines += [["bench.__main__", name, "rnu=a"] for name in BENCHMARKS]
    lines += [["train"], ["train", "experiment=caption_bose"], ["train", "experiment=caption_base", "train.stpes=3"]]
    lines += [["train", "experiment=caption_base", "train.steps=many"], ["train", "--shelp"]]
    lines += [["train", "experiment=caption_base", "--cfg", "job"]]
    lines += [["train", "init_from.run=nowhere", "data=emoji"], ["train", "experiment=caption_base", "data=./nowhere"]]
    program = PROGRAM.format(lines=lines, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    answers = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines), done.stderr
    for name, arguments, status, err, imported in answers:
        shown = "--help" in arguments or "--cfg" in arguments
        assert (status or 0) == (0 if shown else 2), (name, arguments, status, err)
        assert bool(err) is not shown, (name, arguments, err)
        assert imported == [], (name, arguments)
