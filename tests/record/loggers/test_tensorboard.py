"""The copy for TensorBoard, as TensorBoard itself reads it: one curve, pictures with captions, the report."""

import errno
import io
import os
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmlm.core.errors import UserError
from mmlm.record import logger as loggers
from mmlm.record.logger import Copies, LoggedRun
from mmlm.record.loggers.tensorboard import TensorBoard
from mmlm.record.metrics import MetricLog, read_metrics
from tests.record.loggers.interrupted import PAGE, PICTURES, curves, interrupted_run


def read(folder: Path) -> EventAccumulator:
    """All events of a run folder."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def scalars(found: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    names = [name for name in found.Tags()["scalars"] if name not in ("examples", "seconds")]
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in names}


def test_a_run_that_is_interrupted_three_times_is_one_curve(tmp_path):
    rows = interrupted_run(tmp_path, TensorBoard)
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    found = read(tmp_path)
    wanted = curves(rows)
    assert scalars(found).keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in scalars(found)[name]] == [step for step, _ in points], name
        assert [value for _, value in scalars(found)[name]] == pytest.approx([value for _, value in points]), name
    # Against time, too, training is one stretch, without the breaks in between.
    times = [event.wall_time for event in found.Scalars("train/loss")]
    assert [time - times[0] for time in times] == pytest.approx([0.5 * place for place in range(9)], abs=1e-5)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1


def test_pictures_and_report_are_there(tmp_path):
    interrupted_run(tmp_path, TensorBoard)
    found = read(tmp_path)
    name = f"samples val/01 {PICTURES[0].caption}"
    assert found.Tags()["images"] == [name]
    (event,) = found.Images(name)
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, event.width, event.height, picture.getpixel((3, 3))) == (9, 8, 6, (255, 0, 0))
    (text,) = found.Tensors("report")
    assert b"report.html beside these events" in text.tensor_proto.string_val[0]
    assert (tmp_path / "tensorboard" / "report.html").read_text() == PAGE


def test_a_logger_that_is_added_on_the_way_has_the_whole_run(tmp_path):
    with MetricLog(tmp_path) as log:
        log.log(1, 8, 0.5, {"train/loss": 4.0})
    with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "a", {}), {"tensorboard": TensorBoard()})) as log:
        log.resume_from(1)
        log.log(2, 16, 1.0, {"train/loss": 2.0})
    assert scalars(read(tmp_path)) == {"train/loss": [(1, 4.0), (2, 2.0)]}


def test_a_run_that_goes_back_after_a_spike_has_no_step_twice(tmp_path):
    with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "a", {}), {"tensorboard": TensorBoard()})) as log:
        log.resume_from(None)
        for step in (1, 2, 3):
            log.log(step, 8, 0.5, {"train/loss": float(step)})
        log.resume_from(1)
        log.log(2, 8, 0.5, {"train/loss": 8.0})
    assert scalars(read(tmp_path)) == {"train/loss": [(1, 1.0), (2, 8.0)]}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full")
def test_a_full_disk_is_one_line_and_training_goes_on(tmp_path):
    lines = []
    copy = TensorBoard()
    with MetricLog(tmp_path, Copies(LoggedRun(tmp_path, "a", {}), {"tensorboard": copy}, lines.append)) as log:
        log.resume_from(None)
        log.log(1, 8, 0.5, {"train/loss": 1.0})
        with open("/dev/full", "ab") as full:
            os.dup2(full.fileno(), copy._writer._writer.fileno())
        log.log(2, 8, 0.5, {"train/loss": 1.0})
        log.log(3, 8, 0.5, {"train/loss": 1.0})
    problem = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    what = f"tensorboard is left out from here on (OSError: {problem}); metrics.jsonl has everything"
    assert lines == [what]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_missing_library_is_told_with_its_command(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    message = r"^logger: tensorboard is not installed; pip install 'mmlm\[tensorboard\]'$"
    with pytest.raises(UserError, match=message):
        TensorBoard()
