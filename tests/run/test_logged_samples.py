"""Loggers in the training command: one curve over a resumed run, pictures with their captions, and the report."""

import base64
import io
import json

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmlm.record import logger as loggers
from mmlm.record.loggers.tensorboard import TensorBoard
from mmlm.record.metrics import MetricLog, read_metrics
from mmlm.reports.samples import NearestCaption, SampleExample
from mmlm.run.logged_samples import caption_of
from tests.record.loggers.interrupted import curves

SAVED = ("train.steps=6", "train.save_every=2", "train.eval_every=3", "logger=tensorboard", "name=logged")


def test_a_run_that_is_killed_and_resumed_is_one_curve_with_pictures_and_report(
    trained, train_tiny, tmp_path, monkeypatch
):
    log = MetricLog.log

    def killed(self, step, *rest):
        log(self, step, *rest)
        if step == 5:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "log", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_tiny(*SAVED)
    folder = trained(*SAVED)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    wanted = curves(read_metrics(folder / "metrics.jsonl"))
    assert [step for step, _ in wanted["train/loss"]] == [1, 2, 3, 4, 5, 6]
    for name, points in wanted.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in points], name
        assert [value for _, value in found] == pytest.approx([value for _, value in points], nan_ok=True), name
    examples = json.loads((folder / "samples.json").read_text())["splits"]["validation"]["examples"]
    assert len(examples) == 3
    for number, example in enumerate(examples, start=1):
        said = f"{example['generated']} (true: {example['captions'][0]})"
        (event,) = events.Images(f"samples validation/{number:02d} {said}")
        shown = Image.open(io.BytesIO(event.encoded_image_string))
        there = Image.open(io.BytesIO(base64.b64decode(example["image"].partition(",")[2]))).convert("RGB")
        assert (event.step, shown.tobytes()) == (6, there.tobytes())
    assert (folder / "tensorboard" / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_a_logger_that_fails_costs_one_line_and_nothing_else(train_tiny, monkeypatch):
    def fails(self, row):
        self.close(failed=True)
        raise OSError("the disk is gone")

    monkeypatch.setattr(TensorBoard, "log", fails)
    outcome = train_tiny("logger=tensorboard")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.count("tensorboard is left out from here on (OSError: the disk is gone)") == 1
    assert "report: " in outcome.out


def test_a_missing_library_is_refused_before_training(train_tiny, monkeypatch, tmp_path):
    find = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "trackio" else find(name))
    outcome = train_tiny("logger=[tensorboard,trackio]")
    assert outcome.mistake == "logger: trackio is not installed; pip install 'mmlm[trackio]'"
    assert not (tmp_path / "runs").exists()


def example(generated, nearest, captions):
    near = tuple(NearestCaption(text, 0.5, False) for text in nearest)
    return SampleExample("id", "data:", tuple(captions), generated, False, near, None)


@pytest.mark.parametrize(
    ("generated", "nearest", "captions", "caption"),
    [
        ("a cat", ["a dog"], ["a cow", "a calf"], "a cat (true: a cow)"),
        (None, ["a dog", "a cat"], ["a cow"], "a dog (true: a cow)"),
        (None, [], ["a cow"], "true: a cow"),
        ("a cat", [], [], "a cat (no caption is given)"),
    ],
)
def test_a_picture_says_what_the_model_says_and_what_is_true(generated, nearest, captions, caption):
    assert caption_of(example(generated, nearest, captions)) == caption
