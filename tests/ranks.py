"""Starts ranks as real processes, for the tests of what several of them compute together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def run_ranks(folder: Path, size: int, module: str, timeout: float = 600) -> list[dict[Any, Any]]:
    """Starts ``size`` ranks, each ``python -m module FOLDER SIZE RANK``; what each left in ``folder``, by rank.

    All have to end well within ``timeout`` seconds.
    """
    command = [sys.executable, "-W", "error", "-m", module, str(folder), str(size)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True, env=environment, cwd=root)
        for number in range(size)
    ]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert [process.returncode for process in ranks] == [0] * size, "\n".join(said)
    return [torch.load(folder / f"{number}.pt") for number in range(size)]
