"""The same command again: a finished run says so, a stopped one goes on as if it had never stopped."""

import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch

from mmlm.checkpoint import Checkpoint, load_checkpoint
from mmlm.config import run_folder
from mmlm.metrics import MetricLog, read_metrics

RANDOM = ("transform=augment", "decoder.dropout=0.1", "train.ema_decay=0.9", "train.steps=6", "train.save_every=2")
"""A run with all kinds of randomness and state in it; an epoch has 2 steps."""


def last_checkpoint(folder: Path, step: int = 6) -> Checkpoint:
    return load_checkpoint(folder / "checkpoints" / f"step={step:06d}")


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics but for those of the clock."""
    timed = ("seconds", "train/examples_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(folder / "metrics.jsonl")]


def assert_same(first: object, second: object, where: str = "") -> None:
    """Bit for bit, but for seconds."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            if key != "seconds":
                assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}.{index}")
    else:
        assert first == second, where


def assert_same_runs(first: Path, second: Path, step: int = 6) -> None:
    one, other = last_checkpoint(first, step), last_checkpoint(second, step)
    assert_same(dict(one.weights), dict(other.weights), "weights")
    assert_same(dict(one.state), dict(other.state), "state")
    assert rows(first) == rows(second)
    assert (first / "scores.json").read_text() == (second / "scores.json").read_text()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, hard: bool = False) -> None:
    """Ctrl-C, or an end without a chance to save, once the row of ``step`` is written."""
    log = MetricLog.log

    def stopping(self, at, examples, seconds, values):
        log(self, at, examples, seconds, values)
        if at == step:
            if hard:
                raise RuntimeError("killed")
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricLog, "log", stopping)


def test_the_same_command_finds_the_same_folder_and_says_that_it_is_finished(trained, train_tiny, tmp_path):
    folder = trained()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcome = train_tiny("metrics.tags=[again]", "train.log_every=7")
    assert outcome.status == 0
    assert f"finished already at step 3; the report is {folder / 'report.html'}" in outcome.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.parent for path in (tmp_path / "runs").glob("**/config.yaml")] == [folder]


def test_the_ways_to_go_on_that_it_names_work(trained, train_tiny, tiny_config):
    folder = trained()
    advice = re.search(r"add (name=\S+); to train on from these weights add (init_from\.run=\S+)", train_tiny().out)
    for override in advice.groups():
        outcome = train_tiny(override, "seed=1")
        assert (outcome.status, outcome.err) == (0, "")
        assert "step 3/3" in outcome.out
        assert run_folder(tiny_config(override, "seed=1")) != folder
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 3]


def test_a_named_run_of_another_config_is_refused(trained, train_tiny):
    folder = trained("name=mine")
    before = (folder / "config.yaml").read_text()
    mistake = train_tiny("name=mine", "train.steps=9", "optim.lr=0.5").mistake
    assert mistake == (
        f"{folder} holds a run of another config (optim.lr: 0.002 -> 0.5; train.steps: 3 -> 9); "
        "give this one another name="
    )
    assert (folder / "config.yaml").read_text() == before


def test_a_lost_report_is_made_again(trained, train_tiny):
    folder = trained()
    page = (folder / "report.html").read_text()
    for name in ("report.html", "scores.json", "samples.json"):
        (folder / name).unlink()
    outcome = train_tiny()
    assert outcome.status == 0
    assert "resumed at step 3" in outcome.out
    assert "step 1/3" not in outcome.out
    assert len((folder / "report.html").read_text()) == pytest.approx(len(page), rel=0.05)


# Stopping and going on


def test_stopped_and_resumed_is_never_stopped(trained, train_tiny, monkeypatch):
    straight = trained(*RANDOM, "name=straight")
    with monkeypatch.context() as context:
        interrupt_at(context, 3)
        stopped = train_tiny(*RANDOM, "name=stopped")
    assert stopped.status == 130
    command = re.search(r"stopped and saved at step 3; resume with: (.*)", stopped.out).group(1)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "mmlm.train"]
    assert words[-1] == "name=stopped"
    folder = straight.parent.parent / "stopped" / "seed=0"
    assert not (folder / "report.html").exists()
    torch.manual_seed(123)
    resumed = train_tiny(*RANDOM, "name=stopped")
    assert resumed.status == 0
    assert "resumed at step 3" in resumed.out
    assert_same_runs(straight, folder)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(trained, train_tiny, monkeypatch):
    straight = trained(*RANDOM, "name=straight")
    folder = straight.parent.parent / "killed" / "seed=0"
    with monkeypatch.context() as context:
        interrupt_at(context, 5, hard=True)
        with pytest.raises(RuntimeError, match="killed"):
            train_tiny(*RANDOM, "name=killed")
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5]
    assert "resumed at step 4" in train_tiny(*RANDOM, "name=killed").out
    assert_same_runs(straight, folder)


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(trained, train_tiny):
    straight = trained(*RANDOM, "name=straight", "train.keep_last=3")
    folder = trained(*RANDOM, "name=damaged", "train.keep_last=3")
    file = folder / "checkpoints/step=000006/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (folder / "report.html").unlink()
    outcome = train_tiny(*RANDOM, "name=damaged", "train.keep_last=3")
    assert outcome.status == 0
    assert re.search(r"step=000006 is damaged: .*; falling back to the one before", outcome.out)
    assert "resumed at step 4" in outcome.out
    assert_same_runs(straight, folder)


UNFREEZING = (*RANDOM, "optim=muon", "encoder.drop_path=0.2", "freeze=lit", "+freeze.unfreeze={encoder: 3}")


def test_stopped_before_at_or_after_the_step_that_unfreezes(trained, train_tiny, monkeypatch):
    settings = (*UNFREEZING, "train.save_every=1", "train.keep_last=9")
    straight = trained(*settings, "name=straight")
    weights = [last_checkpoint(straight, step).weights["model"] for step in (2, 3, 4)]
    names = [name for name in weights[0] if name.startswith("model.encoder.")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in names)
    assert sum(not torch.equal(weights[1][name], weights[2][name]) for name in names) > 10
    for stop in (2, 3, 4):
        with monkeypatch.context() as context:
            interrupt_at(context, stop)
            assert train_tiny(*settings, f"name={stop}").status == 130
        torch.manual_seed(123)
        assert f"resumed at step {stop}" in train_tiny(*settings, f"name={stop}").out
        assert_same_runs(straight, straight.parent.parent / f"{stop}" / "seed=0")


def test_a_run_with_adapters_resumes_exactly(trained, train_tiny, monkeypatch):
    adapted = (*RANDOM, "freeze=lora", "freeze.lora.dropout=0.1")
    straight = trained(*adapted, "name=straight")
    with monkeypatch.context() as context:
        interrupt_at(context, 3)
        assert train_tiny(*adapted, "name=stopped").status == 130
    torch.manual_seed(123)
    assert "resumed at step 3" in train_tiny(*adapted, "name=stopped").out
    assert_same_runs(straight, straight.parent.parent / "stopped" / "seed=0")


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_maths(trained):
    settings = ("transform=augment", "data.captions_per_image=1")
    alone = trained(*settings, "name=alone")
    helped = trained(*settings, "name=helped", "data.workers=2")
    assert_same_runs(alone, helped, step=3)


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(tiny, tiny_config, start_process, finish_process):
    """To the whole process group, as a terminal does it, with a data worker in it; the command it names resumes it."""
    settings = (*tiny, "train.steps=300", "train.save_every=1000", "data.workers=1", "train.log_every=1")
    folder = run_folder(tiny_config(*settings[len(tiny) :]))
    process = start_process("mmlm.train", *settings, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(read_metrics(folder / "metrics.jsonl")) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    stopped = finish_process(process)
    assert (stopped.status, stopped.err) == (130, "")
    step, command = re.search(r"stopped and saved at step (\d+); resume with: (.*)", stopped.out).groups()
    assert 10 <= int(step) < 300
    assert not (folder / "report.html").exists()

    words = shlex.split(command)
    assert words[:2] == ["python", "-m"]
    resumed = finish_process(start_process(*words[2:]))
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resumed at step {step}" in resumed.out
    assert [row["step"] for row in rows(folder)] == [*range(1, 301), 300]
    assert (folder / "report.html").is_file()


def test_a_run_that_learns_from_its_own_average_resumes_exactly(trained, train_tiny, monkeypatch):
    """Its average, that of its head, and its centre go on."""
    head = "objective.objectives.self_distillation"
    settings = (*RANDOM, "teacher.ema=true", "objective=coca_self_distillation", f"{head}.num_prototypes=9")
    begin = [f"objective.weights.{name}" for name in ("self_distillation", "masked_prediction")]
    settings = (*settings, *(f"{one}.{key}=2" for one in begin for key in ("first", "last")))
    settings = (*settings, "train.micro_batch_size=3")
    straight = trained(*settings, "name=straight")
    with monkeypatch.context() as context:
        interrupt_at(context, 4)
        assert train_tiny(*settings, "name=stopped").status == 130
    torch.manual_seed(123)
    assert "resumed at step 4" in train_tiny(*settings, "name=stopped").out
    assert_same_runs(straight, straight.parent.parent / "stopped" / "seed=0")
