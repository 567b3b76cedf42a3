"""What a cell of a study costs: counted on its parts, or measured by a few steps in a process of its own."""

import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from mmlm.core.errors import UserError
from mmlm.data.loader import TrainLoader
from mmlm.experiment.build import build_freeze
from mmlm.experiment.config import Config
from mmlm.experiment.experiment import build_experiment
from mmlm.record.folder import METRICS
from mmlm.record.metrics import read_metrics
from mmlm.run.header import run_costs
from mmlm.studies.costs import Counted, Measured
from mmlm.studies.grid import Cell
from mmlm.studies.place import last_words
from mmlm.training.train_step import inner

BATCHES = 4
"""Batches whose captions are counted."""
STEPS = 8
"""Steps of a trial."""
WARM_UP = 3
"""Steps at its beginning that are not timed."""


def count(cell: Cell) -> Counted:
    """Builds the parts of a cell, and counts its parameters and the FLOPs of a step, on the first batches.

    Writes nothing. Raises UserError for parts that do not fit together.
    """
    try:
        return _count(cell.config)
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from error


def _count(config: Config) -> Counted:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0), device="cpu")
    experiment = build_experiment(config, Path(os.devnull))
    costs = run_costs(config, experiment)
    loader, step = cast(TrainLoader, experiment.state.loader), inner(experiment.state.train_step)
    images = captions = tokens = 0
    for number in range(BATCHES):
        loader.position = number * config.train.batch_size
        batch = loader.peek()
        images += len(batch.images)
        captions += len(batch.lengths)
        tokens += int(batch.lengths.sum())
    phases = []
    for begin in sorted({0, *build_freeze(config).unfreeze.values()}):
        step.freeze_for(begin)
        phases.append((begin, costs.flops(experiment.model, images, captions, tokens) / BATCHES))
    return Counted(sum(costs.full.parameters.values()), tuple(phases))


def measure(cell: Cell) -> Measured:
    """Trains a cell for a few steps in a process of its own, with its evaluation and report, and times it.

    What it writes is removed. Raises UserError with what that process has said, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = (f"train.steps={STEPS}", "train.log_every=1", "train.eval_every=null", "train.save_every=null")
        words = [*cell.overrides, *trial, "train.diagnose_every=null", "name=trial", f"runs={folder}"]
        log, since = Path(folder) / "log", time.monotonic()
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "mmlm.train", *words], stdout=output, stderr=output, check=False
            )
        took = time.monotonic() - since
        if done.returncode:
            raise UserError(f"cell {cell.name}: {STEPS} steps of it fail: {last_words(log)}")
        (metrics,) = Path(folder).glob(f"**/{METRICS}")
        rows = [row for row in read_metrics(metrics) if "train/loss" in row]
    times = [row["seconds"] for row in rows]
    steps = [after - before for before, after in itertools.pairwise(times)]
    return Measured(
        seconds=statistics.median(steps[WARM_UP - 1 :]),
        beside=took - times[-1],
        memory=max(row["train/peak_memory"] for row in rows) * 1e9,
        source=f"{STEPS} steps",
    )
