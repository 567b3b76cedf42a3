"""Metrics: valid JSON lines that resume exactly, and a console for terminals and files."""

import errno
import io
import json
import math
import os
import re
from pathlib import Path

import pytest
import rich.console
import torch

from mmlm.core.errors import UserError
from mmlm.record.console import Console
from mmlm.record.folder import write_whole
from mmlm.record.metrics import MetricLog, read_metrics


def strict_rows(path):
    """The rows, read by a parser that refuses NaN and Infinity."""

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_rows_are_on_disk_at_once(tmp_path):
    with MetricLog(tmp_path / "run") as log:
        log.log(1, 128, 0.5, {"train/loss": 2.5})
        assert strict_rows(log.path) == [{"step": 1, "examples": 128, "seconds": 0.5, "train/loss": 2.5}]
        log.log(2, 256, 1.0, {"val/R@1": torch.tensor(0.25), "val/images": 7})
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[1] == {"step": 2, "examples": 256, "seconds": 1.0, "val/R@1": 0.25, "val/images": 7}
    assert type(rows[1]["step"]) is int


def test_values_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    with MetricLog(tmp_path) as log:
        log.log(1, 1, 1.0, {"a": math.nan, "b": math.inf, "c": -math.inf})
    row = strict_rows(log.path)[0]
    assert (row["a"], row["b"], row["c"]) == ("NaN", "Infinity", "-Infinity")
    row = read_metrics(log.path)[0]
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


def test_refuses_a_metric_that_would_overwrite_the_step(tmp_path):
    with MetricLog(tmp_path) as log, pytest.raises(ValueError, match="cannot be called 'step'"):
        log.log(1, 1, 1.0, {"step": 3.0})


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    with MetricLog(tmp_path) as log:
        for step in range(1, 6):
            log.log(step, step * 10, float(step), {"loss": math.nan if step == 2 else 1 / step})
    never_killed = log.path.read_text()
    with log.path.open("a") as file:
        file.write('{"step": 6, "exam')  # killed while writing

    with MetricLog(tmp_path) as log:
        assert log.resume_from(3) == 2
        assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3]
        for step in (4, 5):
            log.log(step, step * 10, float(step), {"loss": 1 / step})
        assert log.path.read_text() == never_killed
        assert log.resume_from(None) == 5
        assert log.path.read_text() == ""
        log.log(1, 10, 1.0, {})
    assert [row["step"] for row in read_metrics(log.path)] == [1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with MetricLog(tmp_path) as log, open("/dev/full", "ab") as full:
        log.log(1, 128, 0.5, {"train/loss": 2.5})
        os.dup2(full.fileno(), log._file.fileno())
        message = r"metrics.jsonl could not be written \(No space left on device\); free"
        with pytest.raises(UserError, match=message):
            log.log(2, 256, 1.0, {"train/loss": 2.5})
    assert [row["step"] for row in read_metrics(log.path)] == [1]


def test_a_draft_that_could_not_be_written_is_not_left(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("before")

    def full(self, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"file could not be written \(Read-only file system\)"):
        write_whole(tmp_path / "file", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


def test_resuming_without_a_file_starts_one(tmp_path):
    with MetricLog(tmp_path) as log:
        assert log.resume_from(5) == 0
    assert read_metrics(log.path) == []


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"step": null}', '{"step": "soon"}'])
def test_a_bad_row_is_named_unless_it_is_the_last(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + bad)
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n' + bad + '\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a row of metrics"):
        read_metrics(path)


# Console


class Clock:
    """A clock that is set by hand, in seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_plain_progress_prints_a_line_every_twentieth_with_rate_and_time_left():
    file, clock = io.StringIO(), Clock()
    with Console(file, clock=clock).progress(200) as progress:
        for step in range(1, 201):
            clock.now = step * 0.5
            progress.update(step, {"loss": 1 / step, "lr": 1e-5}, 256.4)
    lines = file.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0] == "step 10/200  0:05 elapsed, 1:35 left  256 examples/s  loss 0.1  lr 1e-05"
    assert lines[-1] == "step 200/200  1:40 elapsed, 0:00 left  256 examples/s  loss 0.005  lr 1e-05"


def test_plain_progress_prints_at_least_every_ten_seconds():
    file, clock = io.StringIO(), Clock()
    with Console(file, clock=clock).progress(100_000, start=50_000) as progress:
        for step in range(50_001, 50_061):
            clock.now += 1.0
            progress.update(step, {"loss": 1.0})
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/100000" for step in range(50_010, 50_061, 10)]
    assert "13:53:10 left" in lines[0]  # 49,990 steps at one a second, counted from where the run resumed


def test_an_activity_tells_now_and_then_what_is_done():
    file, clock = io.StringIO(), Clock()
    with Console(file, clock=clock).activity() as activity:
        for number in range(1, 61):
            clock.now += 1.0
            activity.update(f"encoding mine, batch {number} of 60")
    lines = file.getvalue().splitlines()
    assert lines[:2] == [
        "0:10, 0:51 left  encoding mine, batch 10 of 60",
        "0:20, 0:41 left  encoding mine, batch 20 of 60",
    ]
    assert len(lines) == 6


def test_what_is_left_is_that_of_the_pass_at_hand(terminal_of):
    file, clock = terminal_of(80), Clock()
    console = Console(clock=clock)
    told = {
        100.0: ("encoding a, batch 1 of 12", "1:40  encoding a, batch 1 of 12"),
        104.0: ("encoding a, batch 3 of 12", "1:44, 0:20 left  encoding a, batch 3 of 12"),
        105.0: ("evaluating a, batch 2 of 9", "1:45  evaluating a, batch 2 of 9"),  # another rank has the first
        110.0: ("evaluating a, batch 4 of 9", "1:50, 0:15 left  evaluating a, batch 4 of 9"),
        111.0: ("evaluating a, batch 1 of 9", "1:51  evaluating a, batch 1 of 9"),  # a second pass of the same name
    }
    with console.activity() as activity:
        for clock.now, (doing, shown) in told.items():
            activity.update(doing)
            console._bars._shown.refresh()
            assert any(line.rstrip().endswith(shown) for line in shown_lines(file)), shown


@pytest.fixture
def terminal_of(monkeypatch):
    """``terminal_of(width)``: the file that a console on a terminal of so many columns writes to."""

    def make(width: int) -> io.StringIO:
        file = io.StringIO()
        terminal = rich.console.Console(file=file, force_terminal=True, width=width, highlight=False, color_system=None)
        monkeypatch.setattr(rich.console, "Console", lambda **settings: terminal)
        return file

    return make


def shown_lines(file: io.StringIO) -> list[str]:
    """Every line that a terminal has shown at some time."""
    return re.sub(r"\x1b\[[?\d]*\w", "", file.getvalue()).replace("\r", "\n").splitlines()


def test_the_live_activity_is_a_bar_that_fits_the_terminal(terminal_of):
    file, clock = terminal_of(50), Clock()
    console = Console(clock=clock)
    with console.activity() as activity:
        clock.now = 65.0
        console.line("a line above it")
        for doing in ("encoding a_split_of_a_name_that_is_too_long, batch 1048 of 1200", "something else"):
            activity.update(doing)
            console._bars._shown.refresh()
    lines = shown_lines(file)
    assert all(len(line) <= 50 for line in lines)
    for text in ("a line above it", "1:05  encoding…, batch 1048 of 1200", "1:05  something else"):
        assert any(text in line for line in lines), text


def test_an_evaluation_has_its_bar_below_that_of_the_run(terminal_of):
    file, clock = terminal_of(80), Clock()
    console = Console(clock=clock)
    console.doing("nothing: no activity is displayed")
    with console.progress(1000) as progress:
        clock.now = 600.0
        progress.update(500, {"loss": 1.25}, 300.0)
        with console.activity():
            clock.now = 630.0
            console.doing("evaluating val_style, batch 3 of 12")
            console._bars._shown.refresh()
            console.line("both are there")
        progress.step(501)
    screen = shown_lines(file)
    both = screen[screen.index(next(line for line in screen if "both are there" in line)) :][:3]
    assert "500/1000" in both[1]
    assert "10:00 elapsed, 10:00 left  300 examples/s  loss 1.25" in both[1]
    assert "0:30  evaluating val_style, batch 3 of 12" in both[2]
    assert "501/1000" in next(line for line in reversed(screen) if line.strip())
    assert "nothing" not in file.getvalue()


@pytest.mark.parametrize("width", range(30, 130, 7))
def test_no_number_is_cut_on_any_terminal(terminal_of, width):
    values = {"loss": 1.23456789, "contrastive/accuracy": 0.98765432, "lr": 0.00012345}
    file, clock = terminal_of(width), Clock()
    with Console(clock=clock).progress(12345) as progress:
        clock.now = 3725.0
        progress.update(6789, values, 1234.0)
    whole = {f"{value:.4g}" for value in values.values()} | {"1234", "1:02:05", "50:48", "6789/12345"}
    lines = [line for line in shown_lines(file) if line.strip()]
    assert all(len(line) <= width for line in lines)
    found = {word.strip("…,") for line in lines for word in line.split() if any(map(str.isdigit, word))}
    assert found <= whole | {"0/12345"}, found


def test_a_listing_is_broken_between_its_items_and_only_on_a_terminal(terminal_of):
    items = [f"captioning/score_{number} 0.{number}25" for number in range(4)]
    pipe = io.StringIO()
    Console(pipe).listing("validation", items)
    assert pipe.getvalue() == f"validation: {', '.join(items)}\n"
    file = terminal_of(60)
    Console().listing("validation", items)
    assert file.getvalue().splitlines() == [
        "validation: captioning/score_0 0.025,",
        "  captioning/score_1 0.125, captioning/score_2 0.225,",
        "  captioning/score_3 0.325",
    ]


def test_header_and_lines_are_printed_as_they_are():
    file = io.StringIO()
    console = Console(file)
    console.header([("experiment", "caption_base"), ("data", "train [red]5,000[/red] images")])
    console.line("epoch 1: [a.png] cannot be decoded")
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines == [
        "experiment  caption_base",
        "data        train [red]5,000[/red] images",
        "epoch 1: [a.png] cannot be decoded",
    ]


class Gone(io.StringIO):
    """A stream whose reader goes away after the first line."""

    def write(self, text):
        if self.getvalue():
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return super().write(text)


def test_a_reader_that_goes_away_does_not_end_a_run():
    file = Gone()
    console = Console(file)
    console.line("first")
    with console.progress(2) as progress:
        console.line("second")
        progress.update(2, {"loss": 1.0})
    console.header([("model", "tiny")])
    assert file.getvalue() == "first\n"


def test_quiet_prints_nothing(capsys):
    console = Console(quiet=True)
    console.header([("a", "b")])
    console.line("text")
    with console.progress(2) as progress:
        progress.update(2, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_the_live_bar_shows_terms_rate_and_time_left_and_lines_above_it(monkeypatch):
    file, clock = io.StringIO(), Clock()
    terminal = rich.console.Console(file=file, force_terminal=True, width=100, highlight=False, color_system=None)
    monkeypatch.setattr(rich.console, "Console", lambda **settings: terminal)
    console = Console(clock=clock)
    with console.progress(100) as progress:
        clock.now = 3.0
        progress.update(50, {"loss": 1.25}, 300.0)
        console.line("epoch 1 is done")
    shown = file.getvalue()
    for text in ("50/100", "300 examples/s", "0:03 left", "loss 1.25", "epoch 1 is done"):
        assert text in shown


def test_a_narrow_terminal_keeps_the_time_left(monkeypatch):
    file = io.StringIO()
    terminal = rich.console.Console(file=file, force_terminal=True, width=75, highlight=False, color_system=None)
    monkeypatch.setattr(rich.console, "Console", lambda **settings: terminal)
    with Console(clock=Clock()).progress(100) as progress:
        progress.update(50, {f"term_{index}": 1.0 for index in range(20)}, 300.0)
    last = [line for line in file.getvalue().splitlines() if "50/100" in line][-1]
    assert "0:00 elapsed, 0:00 left  300 examples/s  term_0 1…" in last
