"""Standard output that goes away."""

import os
import sys

from mmlm.core.output import LastingOutput, discard_output, is_unread


def test_a_pipe_without_a_reader_is_unread_and_can_be_discarded(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert not is_unread()
        os.close(reading)
        assert is_unread()
        file.write("in the buffer")
        discard_output()
        assert not is_unread()
        file.flush()


def test_what_is_printed_goes_nowhere_once_nobody_reads(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        lasting = LastingOutput()
        for _ in range(3):
            assert lasting.write("a line\n") == 7
            lasting.flush()
        assert not lasting.isatty()


def test_a_stdout_without_a_descriptor_is_left_alone(capsys):
    discard_output()
    assert not is_unread()
    LastingOutput().write("shown")
    assert capsys.readouterr().out == "shown"
