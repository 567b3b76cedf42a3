"""``python -m mmlm.evaluate watch=true``: checkpoints are scored once, as they appear, as training scores them."""

import json
import math
from pathlib import Path

import pytest

from mmlm import evaluate
from mmlm.cli.arguments import EvaluateArguments
from mmlm.commands.watch import watch_run
from mmlm.record.folder import CHECKPOINTS, METRICS, REPORT, WATCHED
from mmlm.record.manifest import accept, fault_of, read_manifest
from mmlm.record.metrics import read_metrics
from mmlm.record.watched import read_watched
from mmlm.reports.run_folder import read_run_folder

SAVING = ("train.steps=2", "train.save_every=1", "train.eval_every=1", "train.keep_last=9", "evaluators=retrieval")


def test_each_checkpoint_is_scored_once_as_training_scores_it(trained, command, tmp_path, capsys):
    folder = trained(*SAVING)
    measured = {row["step"]: row for row in read_metrics(folder / METRICS) if "validation/image_to_text/R@1" in row}
    before = (folder / METRICS).read_bytes()
    last = max((folder / CHECKPOINTS).glob("step=*"))
    last.rename(tmp_path / "aside")
    waited = []

    def training_goes_on(seconds: float) -> None:
        waited.append(seconds)
        assert [row.step for row in read_watched(folder / WATCHED)] == [1], "what is there is scored before it waits"
        (tmp_path / "aside").rename(last)

    assert watch_run(EvaluateArguments(run=str(folder), watch=True, device="cpu"), training_goes_on) == 0
    assert waited == [30.0]
    rows = read_watched(folder / WATCHED)
    assert [(row.step, row.precision) for row in rows] == [(1, "fp32"), (2, "fp32")], "as the run trains"
    for row in rows:
        assert row.values == {name: measured[row.step][name] for name in row.values}
        assert row.values.keys() == {name for name in measured[row.step] if name.startswith("validation/")}
    assert (folder / METRICS).read_bytes() == before, "the log is the training's own"
    assert fault_of(folder, WATCHED, read_manifest(folder)) is None
    out = capsys.readouterr().out
    assert f"report: {folder.resolve() / REPORT}" in out
    assert "up to step 2, every 30 s; Ctrl-C ends it" in out
    assert f"step 1: validation: image_to_text/R@1 {measured[1]['validation/image_to_text/R@1']:.3f}" in out
    # Again: there is nothing to do. In another precision there is, and both are kept.
    again = command(evaluate, f"run={folder}", "watch=true")
    assert (again.status, again.err) == (0, "")
    assert "step 1:" not in again.out
    assert command(evaluate, f"run={folder}", "watch=true", "precision=bf16").status == 0
    assert [(row.step, row.precision) for row in read_watched(folder / WATCHED)] == [
        (step, precision) for step in (1, 2) for precision in ("fp32", "bf16")
    ]
    # Other weights of a step, by a training that went back: they are scored in place of the former ones.
    (folder / WATCHED).write_text((folder / WATCHED).read_text().replace(rows[0].checkpoint, "f" * 16))
    assert (
        "watch=true scores the checkpoints that are kept anew"
        in command(evaluate, f"run={folder}", "watch=true").mistake
    )
    accept(folder, WATCHED)
    assert "step 1:" in command(evaluate, f"run={folder}", "watch=true").out
    assert read_watched(folder / WATCHED)[0] == rows[0]
    assert [row.step for row in read_watched(folder / WATCHED)] == [1, 2, 2]


def test_a_watch_that_is_stopped_keeps_its_scores_and_writes_no_report_of_a_run_that_is_not_done(
    trained, tmp_path, capsys
):
    folder = trained(*SAVING, "train.steps=3")
    (folder / REPORT).unlink()
    damaged, _, last = sorted((folder / CHECKPOINTS).glob("step=*"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    last.rename(tmp_path / "not yet")

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_run(EvaluateArguments(run=str(folder), watch=True, device="cpu"), ctrl_c)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step 1:"))
    assert line.startswith("step 1: not scored: ")
    assert "bytes instead of" in line
    assert [row.step for row in read_watched(folder / WATCHED)] == [2]
    assert not (folder / REPORT).exists(), "a report would say that the run is done"


@pytest.mark.parametrize(
    ("argument", "line"),
    [("data=/tmp", "watch: scores a run's own splits"), ("watch_seconds=0", "watch_seconds: 0 must be above 0")],
)
def test_what_does_not_go_with_watching_is_refused(command, argument, line, tmp_path):
    assert line in command(evaluate, f"run={tmp_path}", "watch=true", argument).mistake


def test_curves_take_watched_scores_where_training_has_none(tmp_path: Path):
    rows = [{"step": 1, "v/a": 0.1, "train/loss": 3.0}, {"step": 3, "v/a": 0.3}]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"checkpoint": "0", "by": "0", "precision": "fp32"}
    watched = [{"step": 1, **asked, "values": {"v/a": 0.9}}, {"step": 2, **asked, "values": {"v/a": "NaN", "w/b": 7}}]
    (tmp_path / WATCHED).write_text("".join(json.dumps(row) + "\n" for row in watched))
    series = read_run_folder(tmp_path).metrics.series
    assert series["v/a"].steps == (1, 2, 3)
    assert series["v/a"].values[::2] == (0.1, 0.3)
    assert math.isnan(series["v/a"].values[1])
    assert (series["w/b"].steps, series["w/b"].values) == ((2,), (7.0,))
    assert read_run_folder(tmp_path).metrics.steps == 3
