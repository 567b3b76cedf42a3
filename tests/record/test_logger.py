"""The loggers of a run: all of them get everything, and one that fails harms neither the others nor the run."""

import pytest

from mmlm.core.errors import UserError
from mmlm.record.logger import Copies, LoggedRun, check_installed
from mmlm.record.metrics import MetricLog, read_metrics


class Recording:
    """A logger that keeps what it is called with, and fails in one method."""

    def __init__(self, failing=None):
        self.failing, self.calls = failing, []

    def _call(self, name, *what):
        self.calls.append((name, *what))
        if name == self.failing:
            raise ConnectionError("the service died\nand more")

    def begin(self, run, rows):
        self._call("begin", run.name, [row["step"] for row in rows])

    def log(self, row):
        self._call("log", row["step"])

    def samples(self, step, split, samples):
        self._call("samples", step, split)

    def report(self, step, page):
        self._call("report", step)

    def close(self, failed):
        self._call("close", failed)


ALL = [("begin", "name", []), ("log", 1), ("log", 2), ("samples", 2, "val"), ("report", 2), ("close", False)]


@pytest.mark.parametrize("failing", [None, "begin", "log", "samples", "report", "close"])
def test_a_failing_logger_is_told_once_and_left_out(tmp_path, failing):
    lines, bad, good = [], Recording(failing), Recording()
    copies = Copies(LoggedRun(tmp_path, "name", {}), {"bad": bad, "good": good}, lines.append)
    with MetricLog(tmp_path, copies) as log:
        log.resume_from(None)
        log.log(1, 8, 0.1, {"loss": 1.0})
        log.log(2, 16, 0.2, {"loss": 0.5})
        copies.samples(2, "val", [])
        copies.report(2, tmp_path / "report.html")
    assert good.calls == ALL
    until = [name for name, *_ in ALL].index(failing) + 1 if failing else len(ALL)
    assert bad.calls == ALL[:until]
    text = "bad is left out from here on (ConnectionError: the service died); metrics.jsonl has everything"
    assert lines == [text] * (failing is not None)
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]


def test_a_run_that_is_cut_off_is_closed_as_failed(tmp_path):
    logger = Recording()
    copies = Copies(LoggedRun(tmp_path, "name", {}), {"one": logger})
    log = MetricLog(tmp_path, copies)
    log.resume_from(None)
    with pytest.raises(KeyError), log:
        raise KeyError
    assert logger.calls == [("begin", "name", []), ("close", True)]


def test_a_logger_begins_with_the_rows_that_are_kept(tmp_path):
    with MetricLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.log(step, step, 0.1, {})
    logger = Recording()
    with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "name", {}), {"one": logger})) as log:
        log.resume_from(2)
        log.resume_from(1)  # back again, from before a loss spike
    assert logger.calls == [("begin", "name", [1, 2]), ("begin", "name", [1]), ("close", False)]


def test_a_run_keeps_its_identity(tmp_path):
    first = LoggedRun(tmp_path, "a", {}).identity()
    assert LoggedRun(tmp_path, "b", {}).identity() == first
    assert len(first) == 8
    (tmp_path / "other").mkdir()
    assert LoggedRun(tmp_path / "other", "a", {}).identity() != first


def test_a_folder_of_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    check_installed("pytest", "pytest")
    (tmp_path / "no_such_logger").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"^logger: no_such_logger is not installed; pip install one$"):
        check_installed("no_such_logger", "one")
