"""How runs are started side by side, with processes that end by themselves; real ones are in test_whole_study."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmlm.record.lock import RunLock
from mmlm.studies import processes, shown
from mmlm.studies.grid import Run
from mmlm.studies.processes import Outcome, Runner, failures
from mmlm.studies.shown import Shown

STATUSES = {"b": 2, "d": -9}
"""What some runs end with; the others are done."""


def finish(run: Run) -> None:
    """What a run leaves that is done."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "metrics.jsonl").write_text(json.dumps({"step": run.steps, "seconds": 1.0}) + "\n")
    for name in ("report.html", "scores.json"):
        (run.folder / name).touch()


@pytest.fixture
def runs_of(tmp_path: Path):
    """``runs_of("abc")``: a run for each letter."""
    return lambda names: [
        Run(name, 0, (f"experiment={name}",), tmp_path / "r" / name / "x" / "seed=0", 3) for name in names
    ]


@pytest.fixture
def started(monkeypatch):
    """Processes that stand for real ones, in the order of their starts; each ends at the third look."""
    found = []

    class Process:
        pid = 2**22 + 1  # no process has it

        def __init__(self, words, env, **how):
            self.words, self.env, self.how = words, env, how
            self.name = words[-1].removeprefix("experiment=")
            self.looks, self.returncode, self.signals = 0, None, []
            self.beside = sum(other.returncode is None for other in found)
            found.append(self)

        def poll(self):
            self.looks += 1
            if self.returncode is None and self.looks > 3:
                self.returncode = -self.signals[0] if self.signals else STATUSES.get(self.name, 0)
            return self.returncode

        def send_signal(self, number):
            self.signals.append(number)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(processes, "_PAUSE", 0.0)
    monkeypatch.setattr(processes, "_LOOK", 0.0)
    return found


@pytest.fixture
def runner(place):
    """Two at a time; ``told`` are its lines."""
    told: list[str] = []
    found = Runner(place, 2, lambda: "code", told.append, lambda ended: None)
    found.told = told
    return found


def test_as_many_as_asked_for_in_their_order_and_none_that_is_done(runner, runs_of, started, place):
    runs = runs_of("abcde")
    finish(runs[2])
    outcome = runner.run_all(runs)
    assert [process.name for process in started] == ["a", "b", "d", "e"]
    assert max(process.beside for process in started) == 1
    assert outcome == Outcome(None, {f"{name}.seed=0": STATUSES.get(name, 0) for name in "abde"})
    assert failures(outcome) == 2
    assert [place.status(run.label) for run in runs] == [0, 2, None, -9, 0]
    assert place.task("a.seed=0").codes == ("code",)
    assert any(line.startswith("d seed=0: failed: ended by SIGKILL, after ") for line in runner.told)
    head = place.log("a.seed=0").read_text()
    assert head.endswith(" python -m mmlm.train experiment=a\n")


def test_a_run_that_another_process_is_busy_with_takes_a_place_and_is_waited_for(runner, runs_of, started):
    runs = runs_of("abc")
    runs[0].folder.mkdir(parents=True)
    lock = RunLock(runs[0].folder)
    lock.__enter__()

    def show(ended: bool) -> None:
        if len(started) == 2 and started[1].returncode is not None and not (runs[0].folder / "report.html").exists():
            finish(runs[0])
            lock.__exit__(None, None, None)

    runner.show = show
    runner.run_all(runs)
    assert [(process.name, process.beside) for process in started] == [("b", 0), ("c", 0)]


@pytest.mark.parametrize(("number", "handed_on"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_signal_is_handed_on_and_nothing_else_is_started(runner, runs_of, started, number, handed_on):
    runner.show = lambda ended: signal.raise_signal(number) if len(started) == 2 and not started[0].signals else None
    outcome = runner.run_all(runs_of("aceg"))
    assert [process.signals for process in started] == [[handed_on]] * 2
    assert outcome.asked == signal.Signals(number).name
    assert failures(outcome) == 0, "what was stopped has not failed"


@pytest.mark.parametrize("any_code", [False, True])
def test_nothing_begins_once_the_code_has_changed(runner, runs_of, started, any_code):
    """The code is that of the files at the time: each run is a process that reads them anew."""
    runner.code = lambda: "new" if any(process.returncode is not None for process in started) else "old"
    runner.any_code = any_code
    outcome = runner.run_all(runs_of("acef"))
    assert [process.name for process in started] == (["a", "c", "e", "f"] if any_code else ["a", "c"])
    assert outcome.changed is not any_code
    assert all(status == 0 for status in outcome.statuses.values()), "what runs is not stopped"


def test_the_environment_of_a_run(runner, runs_of, started, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in (("HYDRA_FULL_ERROR", "1"), ("MMLM_COMMAND", "x"), ("CUDA_VISIBLE_DEVICES", "3,5")):
        monkeypatch.setenv(name, value)
    runner.devices = 2
    runner.run_all(runs_of("ac"))
    for process, device in zip(started, ("3", "5"), strict=True):
        assert process.words[:3] == [sys.executable, "-m", "mmlm.train"]
        assert not {"HYDRA_FULL_ERROR", "MMLM_COMMAND"} & process.env.keys()
        assert (process.env["OMP_NUM_THREADS"], process.env["CUDA_VISIBLE_DEVICES"]) == ("4", device)
        assert process.how["start_new_session"]


def test_a_line_on_a_terminal_is_written_anew_and_taken_away(runs_of, place, monkeypatch, capsys):
    runs = runs_of("ab")
    finish(runs[0])
    told = Shown(runs, place, 1)
    told.show(False)
    assert capsys.readouterr().out == "", "no terminal"
    told.show(True)
    assert capsys.readouterr().out == "1 done, 0 running, 1 waiting, 0 failed; about 1 s left\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shown, "_PAUSE", -1.0)
    told.show(False)
    told.tell("b: begins")
    line = "\r\x1b[2K1 done, 0 running, 1 waiting, 0 failed; about 1 s left"
    assert capsys.readouterr().out == f"{line}\r\x1b[2Kb: begins\n"
