"""One run at a time in a folder, whatever becomes of the process that held it."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmlm.core.errors import UserError
from mmlm.record.lock import RunLock


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(UserError) as raised, RunLock(tmp_path):
            pass
        said = json.loads((tmp_path / "lock").read_text())
        assert (said["host"], said["pid"]) == (socket.gethostname(), os.getpid())
        assert str(raised.value) == (
            f"{tmp_path} is being written by another run, process {os.getpid()} on {socket.gethostname()} since "
            f"{said['since']}; wait until it ends, or give this one another name="
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", said["since"])
    assert (tmp_path / "lock").read_bytes() == b""
    with RunLock(tmp_path):
        pass


def test_an_exception_lets_go_of_it(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


def test_a_holder_that_has_not_said_who_it_is(tmp_path):
    with RunLock(tmp_path):
        (tmp_path / "lock").write_text("{")
        with pytest.raises(UserError, match="by another run; wait"), RunLock(tmp_path):
            pass


HOLD = """
import os, sys, time
from pathlib import Path
from mmlm.record.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if os.fork() == 0:  # and says so itself: it is then done with forking, which lets go of the lock
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_it_vanishes_with_a_killed_process_though_a_process_that_it_forked_lives_on(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    worker = None
    try:
        worker = int(holder.stdout.readline())
        with pytest.raises(UserError, match=f"process {holder.pid} on"), RunLock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(worker, 0)
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_what_a_run_starts_does_not_hold_it(tmp_path):
    with RunLock(tmp_path):
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        with RunLock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_goes_on(tmp_path, monkeypatch, number):
    def without(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    lines = []
    with RunLock(tmp_path, lines.append), RunLock(tmp_path, lines.append):
        pass
    assert lines == [f"{tmp_path}: this file system has no locks; see to it that no second run writes there"] * 2


def test_a_folder_that_takes_no_lock_file_is_a_mistake(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match=r"lock cannot be opened \(Is a directory\); give runs= another folder"):
        RunLock(tmp_path).__enter__()
