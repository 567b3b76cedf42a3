"""Stop signals as a flag: which came, what a second one does, and that helpers are spared."""

import signal
import subprocess
import sys

import pytest

from mmlm.core.stop import SIGNALS, StopRequest, asked_by, children_spared, ignore_stop_signals, stop_request


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
    before = [signal.getsignal(one) for one in SIGNALS]
    try:
        with stop_request():
            ignore_stop_signals()
        assert [signal.getsignal(one) for one in SIGNALS] == [signal.SIG_IGN] * len(SIGNALS)
    finally:
        for one, own in zip(SIGNALS, before, strict=True):
            signal.signal(one, own)


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
