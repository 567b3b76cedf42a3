"""How commands end: by a signal in every phase, when nobody reads what they print, and on a full disk."""

import errno
import itertools
import os
import signal
import sys

import pytest

from mmlm import caption, compare, evaluate, export, report, train
from mmlm.cli.exits import report_user_errors
from tests.conftest import handlers_kept
from tests.signalled import signal_in

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
PHASES = {
    evaluate: (
        "mmlm.commands.evaluate.load_run",
        "mmlm.commands.evaluate.build_splits",
        "mmlm.evaluation.evaluate.encode_split",
        "mmlm.evaluation.evaluate.collect_samples",
        "mmlm.commands.evaluate.write_report",
    ),
    caption: (
        "mmlm.commands.caption.load_run",
        "mmlm.commands.caption.read_image",
        "mmlm.commands.caption.write_captions",
    ),
    export: (
        "mmlm.commands.export.load_run",
        "mmlm.commands.export.model_card",
        "mmlm.pretrained.model.MmlmModel.save_pretrained",
        "pathlib.Path.rename",
    ),
    report: ("mmlm.commands.report.write_report",),
    compare: ("mmlm.commands.compare.score_table", "mmlm.commands.compare.draw_curves"),
}
"""Command -> the functions in which the signals come."""


def test_windows_is_refused_in_one_line(command, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    for module in (train, evaluate, caption):
        outcome = command(module, "--help")
        assert outcome.out == ""
        assert outcome.mistake == (
            "mmlm runs on Linux and macOS, and on Windows in WSL only: wsl --install, then install it there"
        )


def test_a_signal_ends_a_small_command_at_once_and_leaves_nothing_half_done(trained, command, pictures, tmp_path):
    run = trained()
    arguments = {
        evaluate: (f"run={run}",),
        caption: (f"run={run}", *pictures.good),
        export: (f"run={run}", f"to={tmp_path / 'exported'}"),
        report: (f"run={run}",),
        compare: (f"runs=[one:{run},other:{run}]", f"out={tmp_path / 'compared'}"),
    }
    numbers = itertools.cycle(SIGNALS)
    for module, phases in PHASES.items():
        before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        for where in phases:
            number = next(numbers)
            with signal_in(where, number) as came:
                outcome = command(module, *arguments[module])
            assert came == [number], where
            assert (outcome.status, outcome.err) == (128 + number, f"mmlm: interrupted by {number.name}\n"), where
            assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before, where
        outcome = command(module, *arguments[module])
        assert (outcome.status, outcome.err) == (0, ""), outcome


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_ends_a_command_with_its_own_status(capsys, number):
    with handlers_kept(), pytest.raises(SystemExit) as exited:
        report_user_errors(lambda argv: signal.raise_signal(number))
    assert (exited.value.code, capsys.readouterr().err) == (128 + number, f"mmlm: interrupted by {number.name}\n")


@pytest.mark.parametrize("number", [one for one in SIGNALS if one != signal.SIGINT])
def test_a_rank_leaves_signals_to_the_operating_system(number):
    """Until it trains. Whoever started the ranks tells of it, once."""
    found = []
    with handlers_kept(), pytest.raises(SystemExit):
        report_user_errors(lambda argv: found.append(signal.getsignal(number)), is_rank=True)
    assert found == [signal.SIG_DFL]


# What is printed goes nowhere


def test_a_command_whose_output_nobody_reads_ends_like_any_program(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with handlers_kept(), os.fdopen(writing, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as exited:
            report_user_errors(lambda argv: print("a line"))
    assert exited.value.code == 128 + signal.SIGPIPE


def test_another_broken_pipe_is_a_bug(capsys):
    def main(argv):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with handlers_kept(), pytest.raises(BrokenPipeError):
        report_user_errors(main)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_is_one_line(capsys, number):
    def main(argv):
        raise OSError(number, os.strerror(number), "there/file")

    with handlers_kept(), pytest.raises(SystemExit) as exited:
        report_user_errors(main)
    line = f"mmlm: there/file could not be written ({os.strerror(number)}); free space there, or give another folder\n"
    assert (exited.value.code, capsys.readouterr().err) == (2, line)
