"""A study from its file to its table: 2 x 2 cells of 2 seeds. One fails, one is killed, and so is who runs them."""

import itertools
import json
import os
import re
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from mmlm import study
from mmlm.cli.checked_config import compose_typed
from mmlm.core.errors import STOPPED
from mmlm.studies.grid import Run, cells_of, compared_runs
from mmlm.studies.place import Place, is_alive
from mmlm.studies.progress import Phase, last_row, state_of
from mmlm.studies.study_file import read_study
from tests.conftest import PLUGIN
from tests.plugin.slow_images import SLOW
from tests.run.test_resume import assert_same_runs
from tests.studies.forked import start_study
from tests.waiting import until

pytestmark = pytest.mark.slow
PATIENCE = 240.0
SLOW_IMAGES = ["plugins=[slow_images]", "data.train._target_=slow_images.SlowImages", "train.save_every=1"]
ABOUT = ("images", "captions", "description")
"""What stands beside the scores of a split."""


def wait(condition: Callable[[], object], told: str) -> None:
    assert until(condition, PATIENCE), told


def said(out: Path) -> str:
    """What a study has printed so far."""
    return out.read_text() if out.exists() else ""


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """``start(words, out)``: a study in a process of its own, which ends with the test."""
    started: list[BaseProcess] = []

    def begin(words: Sequence[str], out: Path) -> BaseProcess:
        started.append(start_study(words, out))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.join()


def ended(process: BaseProcess, out: Path) -> tuple[int, str]:
    """Exit status and output of a study, once it has ended."""
    process.join(PATIENCE)
    assert process.exitcode is not None, out.read_text()
    return process.exitcode, out.read_text()


def test_a_study_from_its_file_to_its_table(write_study, place, runs, shapes, tmp_path, command, start, monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    file = write_study()
    add_to_base(file, SLOW_IMAGES)
    words = [str(file), f"runs={runs}", "processes=2"]
    content = read_study(file)
    all_runs = compared_runs(content, cells_of(content, compose_typed, runs), runs, {}, {}, compose_typed)
    assert len(all_runs) == 8
    killed, other, failing = all_runs[0], all_runs[1], all_runs[3]
    failing.folder.parent.mkdir(parents=True)
    failing.folder.write_text("not a folder")

    # Two runs are met on their way: the study is killed, and then one of its runs.
    slow = shapes / SLOW
    slow.write_text("2")
    first = start(words, tmp_path / "first")
    wait(lambda: all(checkpoints(run) for run in (killed, other)), "no checkpoint")
    slow.write_text("15")  # seconds of the next example, so that both are on their way until the file changes
    holder = command(study, *words)
    assert re.fullmatch(
        r"small: is being run by process \d+ on .*; see python -m mmlm.study .*small.yaml status runs=.*",
        holder.mistake,
    )
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    pid = place.task(killed.label).pid
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not is_alive(place.task(killed.label)), "it lives")
    assert is_alive(place.task(other.label)), "a run goes on without its study"
    shown = command(study, *words, "status")
    assert (shown.status, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].split() == ["cell", "seed=0", "seed=1"]
    assert re.search(r"^joint\+low seed=0: failed: was cut off at step \d", shown.out, re.M)
    assert re.search(r"^joint\+high +running \d+% +waiting$", shown.out, re.M)
    assert re.search(r"^0 done, 1 running, 6 waiting, 1 failed; about \d+ \w+ left$", lines[-1])

    slow.write_text("0.3")

    # The same command goes on with both. A signal ends all of it, saved.
    second = start(words, tmp_path / "second")
    wait(lambda: f"{killed.words}: begins, from step " in said(tmp_path / "second"), "it does not go on")
    begun = last_row(killed.folder)[0]
    wait(lambda: last_row(killed.folder)[0] > begun or not second.is_alive(), "no step is made")
    os.kill(second.pid, signal.SIGTERM)
    slow.unlink()
    status, out = ended(second, tmp_path / "second")
    assert status == STOPPED, out
    assert out.splitlines()[-1].startswith("stopped by SIGTERM, and saved; go on with: python -m mmlm.study ")
    assert f"{other.words}: begins" not in out, "it went on by itself"

    # A run that fails stops no other.
    status, out = ended(start(words, tmp_path / "third"), tmp_path / "third")
    assert status == 2, out
    assert f"{failing.words}: failed: runs: {failing.folder} cannot be made (File exists)" in out
    assert out.splitlines()[-2].startswith("7 done, 0 running, 0 waiting, 1 failed"), out
    assert state_of(failing, place, {}).phase is Phase.failed

    # Once the reason is gone, the same command trains what is missing, and nothing else.
    failing.folder.unlink()
    status, out = ended(start(words, tmp_path / "fourth"), tmp_path / "fourth")
    assert status == 0, out
    assert re.findall(r"^(.*): begins", out, re.M) == [failing.words]
    assert "8 done, 0 running, 0 waiting, 0 failed" in out
    check_table(command(study, *words, "report").out, all_runs, place)

    # The run that was killed is the one that nothing happened to, in a study of its own.
    alone = write_study(axes=None, cells={"only": ["optim.lr=0.001"]}, baseline="only", seeds=[0])
    add_to_base(alone, SLOW_IMAGES)
    words = [str(alone), f"runs={tmp_path / 'straight'}"]
    status, out = ended(start(words, tmp_path / "fifth"), tmp_path / "fifth")
    assert status == 0, out
    straight = tmp_path / "straight" / killed.folder.relative_to(runs)
    assert_same_runs(killed.folder, straight, step=3)


def add_to_base(file: Path, tokens: Sequence[str]) -> None:
    """More overrides of every cell."""
    values = yaml.safe_load(file.read_text())
    values["base"] += tokens
    file.write_text(yaml.safe_dump(values, sort_keys=False))


def check_table(text: str, all_runs: Sequence[Run], place: Place) -> None:
    """Every number of the table, and of the Parquet beside it, is that of the run folders."""
    scores = {
        (run.cell, run.seed): json.loads((run.folder / "scores.json").read_text())["splits"]["validation"]
        for run in all_runs
    }
    rows: dict[str, list[str]] = {}
    for line in text.split("**validation: ")[0].splitlines():  # contrasts come after the first table
        rows[line.split(" | ")[0].removeprefix("| ")] = line.strip("| ").split(" | ")
    contrasts = text.split("**validation: image_to_text/R@1**")[1].splitlines()
    for cell in dict.fromkeys(run.cell for run in all_runs):
        row = rows[f"{cell} (baseline)" if cell == "joint+low" else cell]
        seeds = [scores[cell, seed] for seed in (0, 1)]
        cider, recall = ([one[name] for one in seeds] for name in ("captioning/CIDEr-D", "image_to_text/R@1"))
        assert row[1] == "2"
        flops = statistics.mean(flops_of(run) for run in all_runs if run.cell == cell)
        assert row[4] == f"{flops / 1e12:.3g}"
        assert row[7] == f"{statistics.mean(cider):.3f} ± {statistics.stdev(cider):.3f}"
        assert row[8] == f"{100 * statistics.mean(recall):.1f} ± {100 * statistics.stdev(recall):.1f}"
        if cell != "joint+low":
            apart = [scores[cell, n]["image_to_text/R@1"] - scores["joint+low", n]["image_to_text/R@1"] for n in (0, 1)]
            (contrast,) = (line for line in contrasts if line.startswith(f"| {cell} | "))
            assert contrast.split(" | ")[1] == f"{100 * statistics.mean(apart):+.1f}"
    environments = [json.loads((run.folder / "environment.json").read_text()) for run in all_runs]
    (code,) = {one["code"] for one in environments}
    assert f"- Code: {code} (" in text
    (protocol,) = {
        json.loads((run.folder / "scores.json").read_text())["protocols"]["validation"]["hash"] for run in all_runs
    }
    (data,) = {json.loads((run.folder / "data.json").read_text())["data.train"]["digest"][:12] for run in all_runs}
    assert f"- Training data: {data}." in text
    assert f"protocol {protocol}." in text
    found = pq.read_table(place.folder / "runs.parquet").to_pylist()
    assert {(row["cell"], row["seed"]) for row in found} == scores.keys()
    for run in all_runs:
        own = [row for row in found if (row["cell"], row["seed"]) == (run.cell, run.seed)]
        assert {(row["code"], row["data"], row["protocol"]) for row in own} == {(code, data, protocol)}
        values = {row["figure"]: row["value"] for row in own if row["item"] is None}
        assert values == {key: value for key, value in scores[run.cell, run.seed].items() if key not in ABOUT}
        items = pq.read_table(run.folder / "per_item.parquet").to_pylist()
        assert [
            (row["figure"], row["item"], row["concept"], row["value"]) for row in own if row["item"] is not None
        ] == [(row["figure"], row["item"], row["concept"], row["value"]) for row in items]


def flops_of(run: Run) -> float:
    """Of a training, by its rows, one for each step."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    assert len(rows) == 3
    seconds = [0.0, *(row["seconds"] for row in rows)]
    taken = [after - before for before, after in itertools.pairwise(seconds)]
    return sum(1e12 * row["train/tflops_per_second"] * step for row, step in zip(rows, taken, strict=True))


def checkpoints(run: Run) -> bool:
    """Whether a run has saved, and has steps to go."""
    return last_row(run.folder)[0] >= 1 and any((run.folder / "checkpoints").glob("step=*/manifest.json"))
