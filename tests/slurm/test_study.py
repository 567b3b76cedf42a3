"""A study as one job array of a real SLURM: returns at once, keeps to its limit, and goes on with what is not done."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mmlm import study
from tests.conftest import PLUGIN, TINY, Outcome, write_shapes
from tests.plugin.slow_images import SLOW
from tests.slurm.local import LocalCluster

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(
    cluster: LocalCluster, tmp_path: Path, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """``asked(*words)``: what ``python -m mmlm.study`` prints of a study of three cells, one of which must fail."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "HYDRA"))]:
        monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.syspath_prepend(str(PLUGIN))
    images = write_shapes(tmp_path / "it's images")
    (images / SLOW).write_text("3")
    content = {
        "question": "Does it run?",
        "base": [*TINY, f'data.train.folder="{images}"', f'data.validation.validation.folder="{images}"'],
        "cells": {"first": [], "bad": ["train.batch_size=9"], "late": ["optim.lr=0.003"]},
        "baseline": "first",
        "seeds": [0],
        "splits": ["validation"],
        "metrics": ["image_to_text/R@1"],
    }
    content["base"] += ["plugins=[slow_images]", "data.train._target_=slow_images.SlowImages"]
    file = tmp_path / "array.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))

    def ask(*words: str) -> str:
        done = command(study, str(file), *words, f"runs={tmp_path / 'runs'}")
        assert (done.status, done.err) == (0, ""), done
        return done.out

    return ask


SUBMIT = ("launcher=slurm", "at_once=1", "slurm.cpus_per_task=1", "slurm.partition=main")


def test_a_study_is_one_array_that_goes_on_with_what_is_not_done(asked, cluster, tmp_path):
    out = asked(*SUBMIT)
    job = re.search(r"^submitted job (\d+): 3 tasks, 1 at a time$", out, re.M).group(1)
    assert cluster.facts(f"{job}_2")["ArrayTaskThrottle"] == "1"
    cluster.run("scancel", f"{job}_2")
    again = asked(*SUBMIT)
    submitted = re.search(r"^submitted job (\d+): 1 task, 1 at a time$", again, re.M)
    assert submitted is not None, "what is running or in the queue is not submitted again"
    (tmp_path / "it's images" / SLOW).unlink()
    cluster.run("scancel", submitted.group(1))
    cluster.wait(lambda: not cluster.run("squeue", "--noheader"), "the tasks do not end", lambda: asked("status"))
    lines = asked("status").splitlines()
    assert lines[:4] == ["cell   seed=0", "first  done", "bad    failed", "late   waiting"]
    assert lines[5] == (
        "bad seed=0: failed: train.batch_size: 9 is larger than the data set, which has 8 examples; use at most 8"
    )
    assert re.fullmatch(r"late seed=0: waiting: job \d+_0 is gone", lines[6])

    out = asked(*SUBMIT[:1], "at_once=2", *SUBMIT[2:])
    assert re.search(r"^submitted job \d+: 2 tasks, 2 at a time$", out, re.M)
    cluster.wait(lambda: not cluster.run("squeue", "--noheader"), "the tasks do not end", lambda: asked("status"))
    assert "\nlate   done\n" in asked("status")
    table = asked("report")
    assert re.search(r"^\| first \(baseline\) \| 1 \|", table, re.M)
    assert re.search(r"^\| late \| 1 \|", table, re.M)
    assert "**Interim**: 0 of 1 seeds are done in every cell" in table
