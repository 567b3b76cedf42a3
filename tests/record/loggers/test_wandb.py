"""The copy at wandb: one curve however often a run is interrupted, bounded waits, nothing printed."""

import json
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from mmlm.record.logger import Copies, LoggedRun
from mmlm.record.loggers.wandb import Wandb
from mmlm.record.metrics import MetricLog, read_metrics
from tests.record.loggers.interrupted import PAGE, curves, interrupted_run

BLOCK = 32768
"""Bytes of a block of wandb's file, which has the form of a log of LevelDB."""
ROOT = Path(__file__).parents[3]
OFFLINE_RUN = """
import sys
from pathlib import Path
from mmlm.record.loggers.wandb import Wandb
from tests.record.loggers.interrupted import interrupted_run

interrupted_run(Path(sys.argv[1]), lambda: Wandb("offline", "tests", None, ["tag"]), killed=False)
"""


def records(file: Path) -> list[Record]:
    """The records of a ``.wandb`` file."""
    data, place, found, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no room for a header: the rest of the block is filled with zeros
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def points(history: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every number that a run has logged."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in history:
        values = {"/".join(item.nested_key): item.value_json for item in record.history.item}
        for name, value in values.items():
            if name.startswith(("train/", "val/")):
                found.setdefault(name, []).append((int(values["_step"]), float(value)))
    return found


@pytest.mark.slow
def test_an_offline_run_that_is_interrupted_three_times_is_one_curve_and_prints_nothing(tmp_path):
    """In its own process, which has to end by itself; a proxy that nobody answers stands for no network."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE_RUN, str(run)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # One folder, of which one run is synced: of several with one id, the last would take the place of the others.
    (folder,) = (run / "wandb").glob("offline-run-*")
    identity = (run / "logger_id").read_text()
    found = records(folder / f"run-{identity}.wandb")
    (started,) = [record.run for record in found if record.HasField("run")]
    assert (started.run_id, started.project, list(started.tags)) == (identity, "tests", ["tag"])
    history = [record for record in found if record.HasField("history")]
    assert points(history) == curves(read_metrics(run / "metrics.jsonl"))
    last = {tuple(item.nested_key): item.value_json for item in history[-1].history.item}
    assert last["samples/val", "captions"] == '["a red square (true: a red circle)"]'
    assert (folder / "files" / json.loads(last["report", "path"])).read_text() == PAGE
    assert len(list((folder / "files" / "media").rglob("*.png"))) == 1


class Server:
    """An online run, and what the server has of it; one method may fail. It takes no step before its last one."""

    def __init__(self, failing=None, last=-1):
        self.failing, self.calls, self.rows, self.starting_step = failing, [], [], last + 1

    def _call(self, name):
        self.calls.append(name)
        if name == self.failing:
            raise ConnectionError("the service died\nand more")

    def define_metric(self, name, step_metric):
        self._call("define_metric")

    def log(self, row, step):
        self._call("log")
        self.rows.append((step, row["step"]))

    def finish(self, exit_code):
        self._call("finish")


def online() -> Wandb:
    return Wandb("online", "p", "e", ["t"])


@pytest.fixture
def logged_in(monkeypatch):
    """The seconds that wandb was given to find an account, which it has found."""
    seconds = []
    monkeypatch.setattr(wandb, "login", lambda timeout: seconds.append(timeout) or True)
    return seconds


LOGGED_OUT = """
import sys
from pathlib import Path
from mmlm.record.loggers import wandb
from mmlm.record.logger import Copies, LoggedRun

wandb._START_SECONDS = 1
folder = Path(sys.argv[1])
Copies(LoggedRun(folder, "name", {}), {"wandb": wandb.Wandb("online", "tests", None, [])}).begin([])
"""


@pytest.mark.slow
def test_without_an_account_a_terminal_is_not_waited_for(tmp_path):
    """In a real terminal, into which nobody types."""
    ours, theirs = os.openpty()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "NETRC"))}
    process = subprocess.Popen(
        [sys.executable, "-c", LOGGED_OUT, str(tmp_path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
    )
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal, suppress(OSError):  # a terminal that the process has left
        while more := terminal.read(4096):
            shown += more
    assert process.wait() == 0
    assert b"wandb is left out from here on (nobody is logged in; run `wandb login` before" in shown


def test_an_online_run_is_continued_where_the_server_is(tmp_path, monkeypatch, logged_in):
    """Of a resumed run, the server gets the rows that it lacks, and no row again."""
    server = SimpleNamespace(rows=[])

    def init(**settings):
        session = Server(last=max([step for step, _ in server.rows], default=-1))
        session.rows = server.rows
        return session

    monkeypatch.setattr(wandb, "init", init)
    interrupted_run(tmp_path, lambda: _without_pictures(online()))
    assert server.rows == [(step, step) for step in (1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9)]


def _without_pictures(copy: Wandb) -> Wandb:
    copy.samples = copy.report = lambda *what: None
    return copy


@pytest.mark.parametrize(
    ("failing", "calls"),
    [
        ("define_metric", ["define_metric"]),
        ("log", ["define_metric", "log"]),
        ("finish", ["define_metric", "log", "log", "finish"]),
    ],
)
def test_a_failing_wandb_is_told_once_and_left_out(tmp_path, monkeypatch, failing, calls, logged_in):
    run, told = Server(failing), []
    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "name", {}), {"wandb": online()}, told.append)) as log:
        log.resume_from(None)
        log.log(1, 8, 0.1, {"loss": 1.0})
        log.log(2, 16, 0.2, {"loss": 0.5})
    assert run.calls == calls
    text = "wandb is left out from here on (ConnectionError: the service died); metrics.jsonl has everything"
    assert told == [text]
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]


def test_a_wandb_that_does_not_start_does_not_stop_a_run(tmp_path, monkeypatch, capsys, logged_in):
    def init(**settings):
        raise TimeoutError("no answer")

    monkeypatch.setattr(wandb, "init", init)
    with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "name", {}), {"wandb": online()})) as log:
        log.resume_from(None)
        log.log(1, 8, 0.1, {"loss": 1.0})
    assert capsys.readouterr().err.startswith("wandb is left out from here on (TimeoutError: no answer)")
    assert len(read_metrics(log.path)) == 1


def test_wandb_is_started_with_bounded_waits_and_keeps_its_id(tmp_path, monkeypatch, logged_in):
    started = []
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings) or Server())
    for _ in range(2):
        with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "name", {"lr": 1}), {"wandb": online()})) as log:
            log.resume_from(None)
    first, second = started
    assert first["id"] == second["id"]
    assert (first["project"], first["entity"], first["tags"], first["mode"]) == ("p", "e", ["t"], "online")
    assert (first["dir"], first["config"], first["name"]) == (tmp_path, {"lr": 1}, "name")
    assert [0 < seconds <= 15 for seconds in logged_in] == [True, True]
    limits = first["settings"]
    assert limits.init_timeout <= 15
    assert 0 < limits.finish_timeout <= 60
    assert (limits.console, limits.silent) == ("off", True)
