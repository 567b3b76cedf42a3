"""Stop signals as a flag: which came, what a second one does, and that helpers are spared."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from mmlm.core.stop import (
    SIGNALS,
    EndedBySignal,
    StopAsked,
    StopRequest,
    asked_by,
    children_spared,
    ended_by_signals,
    ignore_stop_signals,
    stop_request,
)
from tests.conftest import handlers_kept


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_its_name_and_handlers_come_back(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with stop_request() as request:
        assert request == StopRequest()
        assert asked_by(request.flags()) is None
        signal.raise_signal(number)
        assert request.signal_name == number.name
        assert asked_by(request.flags()) == number.name
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_request():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_are_ignored_before_it_ends_stay_ignored():
    with handlers_kept():
        with stop_request():
            ignore_stop_signals()
        assert [signal.getsignal(one) for one in SIGNALS] == [signal.SIG_IGN] * len(SIGNALS)


@pytest.mark.parametrize("context", [stop_request, ended_by_signals])
def test_under_nohup_a_closed_terminal_is_no_signal(context):
    with handlers_kept():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with context() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request is None or request.signal_name is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", SIGNALS)
def test_between_two_pieces_of_work_it_can_be_asked_for(number):
    with stop_request() as request:
        request.check()
        signal.raise_signal(number)
        with pytest.raises(StopAsked, match=number.name):
            request.check()


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_is_interrupted_by_a_signal_that_comes_or_has_come(number):
    with stop_request() as request:
        with pytest.raises(EndedBySignal, match=number.name), request.at_once():
            signal.raise_signal(number)
        with pytest.raises(EndedBySignal, match=number.name), request.at_once():
            pytest.fail("it has come before")
        if number != signal.SIGINT:  # a second one does not wait
            signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_would_be_lost_the_first_one_ends_the_work(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # SLURM sends two, and what is cleaned up now has to be
            cleaned.append(True)

    with pytest.raises(EndedBySignal) as raised, ended_by_signals():
        work()
    assert (raised.value.signal_name, raised.value.status, cleaned) == (number.name, 128 + number, [True])
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_others_may_come_as_often_as_they_like_and_the_first_is_told():
    with stop_request() as request:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
    assert request.signal_name == "SIGUSR1"


def test_of_several_ranks_the_most_pressing_is_told():
    flags = [StopRequest(name).flags() for name in (None, "SIGUSR2", "SIGTERM", "SIGUSR2")]
    assert asked_by([sum(each) for each in zip(*flags, strict=True)]) == "SIGTERM"


@pytest.mark.slow
def test_children_that_are_started_meanwhile_are_spared_and_nothing_is_lost_here():
    with stop_request() as request:
        with children_spared():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
            signal.raise_signal(signal.SIGUSR1)
            assert request.signal_name is None
        assert request.signal_name == "SIGUSR1"
    for number in SIGNALS:
        child.send_signal(number)
    child.communicate("\n", timeout=240)
    assert child.returncode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)


@pytest.mark.parametrize("speaks", [True, False])
def test_the_first_interrupt_says_what_happens_now_where_somebody_looks(monkeypatch, speaks):
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with stop_request(speaks) as request:
            signal.raise_signal(signal.SIGINT)
        with stop_request(speaks):
            signal.raise_signal(signal.SIGTERM)  # nobody at the keyboard
        os.write(terminal.fileno(), b"end\n")
        said = ""
        while not said.endswith("end\r\n"):  # one read may return less than was written
            said += os.read(ours, 1000).decode()
    os.close(ours)
    line = "\r\nmmlm: stopping after this step, once it is saved; Ctrl-C again to leave now\r\n"
    assert said == (line if speaks else "") + "end\r\n"
    assert request.signal_name == "SIGINT"
