"""The same command again: a finished run says so, a stopped one goes on as if it had never stopped."""

import errno
import json
import os
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmlm import train
from mmlm.checkpoints import files as checkpoint_files
from mmlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from mmlm.checkpoints.writer import CheckpointWriter
from mmlm.core.errors import STOPPED
from mmlm.core.loss import Loss
from mmlm.experiment.run_identity import run_folder
from mmlm.record.folder import find_run
from mmlm.record.lock import RunLock
from mmlm.record.metrics import MetricLog, read_metrics
from mmlm.run import session as training
from mmlm.training.reporter import OF_THE_CLOCK
from mmlm.training.update import Update
from tests.equality import assert_same
from tests.waiting import until

RANDOM = ("transform=augment", "decoder.dropout=0.1", "train.ema_decay=0.9", "train.steps=6", "train.save_every=2")
"""A run with all kinds of randomness and state in it; an epoch has 2 steps."""


def last_checkpoint(folder: Path, step: int = 6) -> Checkpoint:
    return load_checkpoint(folder / "checkpoints" / f"step={step:06d}")


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics but for those of the clock."""
    timed = ("seconds", *(f"train/{name}" for name in OF_THE_CLOCK))
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(folder / "metrics.jsonl")]


def assert_same_runs(first: Path, second: Path, step: int = 6) -> None:
    one, other = last_checkpoint(first, step), last_checkpoint(second, step)
    assert_same(dict(one.weights), dict(other.weights), "weights")
    assert_same(dict(one.state), dict(other.state), "state", but=("seconds", "waited"))
    assert rows(first) == rows(second)
    assert (first / "scores.json").read_text() == (second / "scores.json").read_text()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, hard: bool = False) -> None:
    """Ctrl-C in the step that ends as step ``step``, or an end without a chance to save once its row is written."""
    log, update = MetricLog.log, Update.__call__

    def killed(self, at, examples, seconds, values):
        log(self, at, examples, seconds, values)
        if at == step:
            raise RuntimeError("killed")

    def stopping(self, state, batch, diagnosed, request):
        if state.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return update(self, state, batch, diagnosed, request)

    if hard:
        monkeypatch.setattr(MetricLog, "log", killed)
    else:
        monkeypatch.setattr(Update, "__call__", stopping)


def test_the_same_command_finds_the_same_folder_and_says_that_it_is_finished(trained, train_tiny, tmp_path):
    folder = trained()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcome = train_tiny("logger=tensorboard", "train.log_every=7")
    assert outcome.status == 0
    assert f"finished already at step 3; the report is {folder / 'report.html'}" in outcome.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.parent for path in (tmp_path / "runs").glob("**/config.yaml")] == [folder]


def test_the_ways_to_go_on_that_it_names_work(trained, train_tiny, tiny_config):
    folder = trained()
    advice = re.search(r"add (name=\S+); to train on from these weights add (.*)", train_tiny().out)
    for override in shlex.split(" ".join(advice.groups())):
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
        "go on with the new one by resume=changed, or give it another name="
    )
    assert (folder / "config.yaml").read_text() == before


def test_ten_differences_are_shown(trained, train_tiny):
    trained("name=mine")
    changed = ["data.max_tokens=20", "data.language=en", "data.evaluation_batch_size=9", "samples.examples=2"]
    changed += ["train.steps=9", "train.batch_size=2", "train.ema_decay=0.9", "train.eval_every=2"]
    changed += ["train.save_every=2", "optim.lr=0.5", "optim.eps=0.1", "optim.weight_decay=0.3"]
    mistake = train_tiny("name=mine", *changed).mistake
    assert mistake.count(" -> ") == 10
    assert "; and 2 more); go on" in mistake


def test_a_run_goes_on_with_a_changed_config(trained, train_tiny):
    folder = trained("name=mine", "optim.weight_decay=0.1")
    before = (folder / "config.yaml").read_text()
    schedule = ("schedule=constant", "schedule.warmup_steps=0")
    changed = ("name=mine", "resume=changed", "train.steps=5", "optim.lr=0.25", "train.ema_decay=0.9", *schedule)
    outcome = train_tiny(*changed)
    assert (outcome.status, outcome.err) == (0, "")
    assert "goes on with another config: " in outcome.out
    assert "optim.lr: 0.002 -> 0.25; optim.weight_decay: 0.1 -> " in outcome.out
    assert "resumed at step 3" in outcome.out
    assert (folder / "config.before-step=000003.yaml").read_text() == before
    assert "lr: 0.25" in (folder / "config.yaml").read_text()
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 3, 4, 5, 5]
    assert [row["train/lr"] for row in rows(folder) if row["step"] > 3 and "train/lr" in row] == [0.25, 0.25]
    state = last_checkpoint(folder, 5).state["optimizer"]
    assert state["groups"][0]["settings"]["peak_lr"] == 0.25
    assert state["groups"][0]["settings"]["weight_decay"] != 0.1
    assert {int(values["step"]) for values in state["state"].values()} == {5}

    assert "finished already at step 5" in train_tiny(*changed).out
    unchanged = [word for word in changed if word != "resume=changed"]
    assert "finished already at step 5" in train_tiny(*unchanged).out


def test_a_run_that_goes_on_on_another_machine_computes_in_what_it_began_with(trained, train_tiny, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    straight = trained("train.precision=auto", "name=straight")
    with monkeypatch.context() as patches:
        interrupt_at(patches, 2)
        assert train_tiny("train.precision=auto", "name=moved").status == STOPPED
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    outcome = train_tiny("train.precision=auto", "name=moved")
    assert "resumed at step 2" in outcome.out
    assert "bf16" in outcome.out
    assert_same_runs(straight, straight.parents[1] / "moved" / straight.name, 3)
    assert json.loads((straight / "environment.json").read_text())["precision"] == "bf16"


def test_a_change_that_does_not_fit_is_refused_and_not_recorded(trained, train_tiny):
    folder = trained("name=mine")
    before = (folder / "config.yaml").read_text()
    mistake = train_tiny("name=mine", "resume=changed", "train.steps=9", "bridge=mlp").mistake
    assert mistake.startswith(f"resume: the run in {folder} does not fit this model: ")
    mistake = train_tiny("name=mine", "resume=changed", "tokenizer.vocab_size=270").mistake
    assert mistake == (
        "resume: tokenizer.vocab_size: 280 -> 270 has no effect on a run that has begun; give this one another name="
    )
    assert (folder / "config.yaml").read_text() == before
    assert not list(folder.glob("config.before-*"))


def test_a_run_begins_anew_and_nothing_is_deleted(trained, train_tiny):
    folder = trained("name=mine")
    kept = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    train_tiny("name=mine", "resume=never", "preflight=true")
    assert folder.exists()
    folder.with_name("seed=0.before-1").mkdir()
    aside = folder.with_name("seed=0.before-2")
    outcome = train_tiny("name=mine", "resume=never", "train.steps=2")
    assert outcome.status == 0
    assert f"what was in {folder} is now in {aside}" in outcome.out
    assert "step 1/2" in outcome.out
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == kept
    assert [row["step"] for row in rows(folder)] == [1, 2, 2]
    assert find_run(str(folder.parent)) == folder


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_that_is_being_written_is_left_alone(trained, train_tiny, resume):
    folder = trained("name=mine")
    with RunLock(folder):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        mistake = train_tiny("name=mine", f"resume={resume}").mistake
        assert mistake.startswith(f"{folder} is being written by another run, process {os.getpid()} on ")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(trained, train_tiny, monkeypatch):
    straight = trained(*RANDOM, "name=straight")
    folder = straight.parent.parent / "full" / "seed=0"
    write = checkpoint_files.finish

    def full(saving, step, aliases):
        if step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(saving, step, aliases)

    with monkeypatch.context() as context:
        context.setattr("mmlm.checkpoints.checkpoint.finish", full)
        mistake = train_tiny(*RANDOM, "name=full").mistake
    assert mistake == (
        f"checkpoint {folder / 'checkpoints/step=000004'} could not be written (No space left on device); "
        "step=000002 is intact; free space there, then give the same command again"
    )
    assert "resumed at step 2" in train_tiny(*RANDOM, "name=full").out
    assert_same_runs(straight, folder)


def test_a_stop_that_could_not_be_saved_does_not_say_that_it_was(train_tiny, monkeypatch):
    def full(saving, step, aliases):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    interrupt_at(monkeypatch, 1)
    monkeypatch.setattr("mmlm.checkpoints.checkpoint.finish", full)
    outcome = train_tiny()
    assert outcome.mistake.endswith("there is none before it; free space there, then give the same command again")
    assert "stopped and saved" not in outcome.out


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
    assert stopped.status == STOPPED
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


@pytest.mark.parametrize("extra", [(), ("train.precision=fp16",), ("train.precision=fp16", "train.micro_batch_size=2")])
def test_stopped_between_two_rows_it_has_the_same_rows(trained, train_tiny, monkeypatch, extra):
    """Five steps make a row; it is stopped after three."""
    settings = (*RANDOM, "train.log_every=5", "train.diagnose_every=3", *extra)
    straight = trained(*settings, "name=straight")
    with monkeypatch.context() as context:
        interrupt_at(context, 3)
        assert "stopped and saved at step 3" in train_tiny(*settings, "name=stopped").out
    folder = straight.parent.parent / "stopped" / "seed=0"
    assert last_checkpoint(folder, 3).state["windows"][0]["steps"] == 3
    torch.manual_seed(123)
    assert train_tiny(*settings, "name=stopped").status == 0
    assert_same_runs(straight, folder)
    assert [row["step"] for row in rows(folder)] == [5, 6, 6]


def spike_once(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A loss that is told as a thousand times what it is: that of one batch at one step, whenever it is met there."""
    backward, spiked = training.backward, []

    def spiking(train_step, batches, step_key, diagnose, scale) -> Loss:
        loss = backward(train_step, batches, step_key, diagnose, scale)
        ids = batches[0].ids
        if step_key.step != step or ids not in (spiked or [ids]):
            return loss
        spiked[:] = [ids]
        return Loss({name: replace(term, local_sum=1000 * term.local_sum) for name, term in loss.terms.items()})

    monkeypatch.setattr(training, "backward", spiking)


@pytest.mark.thorough
@pytest.mark.parametrize("hard", [True, False])
def test_stopped_or_killed_around_a_loss_spike_it_ends_the_same(trained, train_tiny, monkeypatch, hard):
    """Step 6 has the spike; the run goes back to step 4. Stopped or killed before it, in it, or after it."""
    spikes = ("train.spike.threshold=20", "train.spike.window=3", "train.keep_last=1")
    settings = (*RANDOM, *spikes, "train.steps=9", "train.save_every=4", "train.eval_every=5")
    settings = (*settings, "train.best_metric=validation/image_to_text/R@1")
    spike_once(monkeypatch, 6)
    straight = trained(*settings, "name=straight")
    for stop in (5, 8) if hard else (5, 6, 8):
        with monkeypatch.context() as context:
            interrupt_at(context, stop, hard)
            if hard:
                with pytest.raises(RuntimeError, match="killed"):
                    train_tiny(*settings, f"name={stop}")
            else:
                assert train_tiny(*settings, f"name={stop}").status == STOPPED
        torch.manual_seed(123)
        assert train_tiny(*settings, f"name={stop}").status == 0
        folder = straight.parent.parent / f"{stop}" / "seed=0"
        assert_same_runs(straight, folder, step=9)
        assert last_checkpoint(folder, 9).state["rewinds"] == 1


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
            assert train_tiny(*settings, f"name={stop}").status == STOPPED
        torch.manual_seed(123)
        assert f"resumed at step {stop}" in train_tiny(*settings, f"name={stop}").out
        assert_same_runs(straight, straight.parent.parent / f"{stop}" / "seed=0")


def test_a_run_with_adapters_resumes_exactly(trained, train_tiny, monkeypatch):
    adapted = (*RANDOM, "freeze=lora", "freeze.lora.dropout=0.1")
    straight = trained(*adapted, "name=straight")
    with monkeypatch.context() as context:
        interrupt_at(context, 3)
        assert train_tiny(*adapted, "name=stopped").status == STOPPED
    torch.manual_seed(123)
    assert "resumed at step 3" in train_tiny(*adapted, "name=stopped").out
    assert_same_runs(straight, straight.parent.parent / "stopped" / "seed=0")


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_maths(trained):
    settings = ("transform=augment", "data.captions_per_image=1")
    alone = trained(*settings, "name=alone")
    helped = trained(*settings, "name=helped", "data.workers=2")
    assert_same_runs(alone, helped, step=3)


def test_a_signal_that_arrives_while_the_stopped_run_is_saved_does_not_end_it(train_tiny, monkeypatch):
    """SLURM signals every rank by itself: another rank's may have stopped the run before this one's comes."""
    wait = CheckpointWriter.wait

    def late(self):
        signal.raise_signal(signal.SIGTERM)
        wait(self)

    with monkeypatch.context() as context:
        interrupt_at(context, 2)
        context.setattr(CheckpointWriter, "wait", late)
        outcome = train_tiny("name=late")
    assert (outcome.status, outcome.err) == (STOPPED, "")
    assert "stopped and saved at step 2" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_real_process(tiny, tiny_config, start_process, finish_process, command, number):
    """To the whole process group, as a terminal and SLURM do it, with a data worker in it; it names how to go on."""
    settings = (*tiny, "train.steps=100", "train.save_every=1000", "data.workers=1", "train.log_every=1")
    folder = run_folder(tiny_config(*settings[len(tiny) :]))
    process = start_process("mmlm.train", *settings, start_new_session=True)

    def has_rows() -> bool:
        assert process.poll() is None, process.communicate()
        file = folder / "metrics.jsonl"
        return file.exists() and len(read_metrics(file)) >= 10

    assert until(has_rows, 240)
    os.killpg(process.pid, number)
    stopped = finish_process(process)
    # Python's tracker of semaphores may remark, after all has ended, that one of the worker's is gone already.
    said = [
        line for line in stopped.err.splitlines() if "resource_tracker" not in line and "warnings.warn(" not in line
    ]
    assert (stopped.status, said) == (STOPPED, [])
    step, again = re.search(r"stopped and saved at step (\d+); resume with: (.*)", stopped.out).groups()
    assert 10 <= int(step) < 100
    assert not (folder / "report.html").exists()

    words = shlex.split(again)
    assert words[:3] == ["python", "-m", "mmlm.train"]
    resumed = command(train, *words[3:])
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resumed at step {step}" in resumed.out
    assert [row["step"] for row in rows(folder)] == [*range(1, 101), 100]
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
        assert train_tiny(*settings, "name=stopped").status == STOPPED
    torch.manual_seed(123)
    assert "resumed at step 4" in train_tiny(*settings, "name=stopped").out
    assert_same_runs(straight, straight.parent.parent / "stopped" / "seed=0")


def test_another_config_goes_on_or_begins_anew_where_that_is_asked_for(trained, train_tiny):
    folder = trained("name=mine")
    outcome = train_tiny("name=mine", "train.steps=4", "resume=changed")
    assert (outcome.status, outcome.err) == (0, "")
    assert "goes on with another config: train.steps: 3 -> 4" in outcome.out
    assert "resumed at step 3" in outcome.out
    assert "steps: 3" in (folder / "config.before-step=000003.yaml").read_text()
    outcome = train_tiny("name=mine", "train.steps=2", "resume=never")
    assert (outcome.status, outcome.err) == (0, "")
    assert [row["step"] for row in rows(folder)] == [1, 2, 2]
    assert [row["step"] for row in rows(folder.with_name("seed=0.before-1"))] == [1, 2, 3, 3, 4, 4]
