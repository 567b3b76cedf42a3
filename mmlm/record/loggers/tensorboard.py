"""The copy of a run for TensorBoard, in ``tensorboard/`` of the run folder: ``tensorboard --logdir runs``."""

import io
import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmlm.record.folder import TENSORBOARD
from mmlm.record.logger import LoggedRun, Row, Sample, check_installed

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

_FILES = "events.out.tfevents."
"""What the name of an event file begins with."""
_VERSION = "brain.Event:2"
"""What the first event of a file says."""


class TensorBoard:
    """One event file. A session writes all rows of the run into a new one, and then removes the one before it.

    Events are written by the package tensorboard's own writer of records, at once and in this thread: its writer of
    events has a thread of its own, for which a caller would wait for ever once it has met a full disk.
    """

    def __init__(self) -> None:
        """Raises UserError if tensorboard is not installed."""
        check_installed("tensorboard", "'mmlm[tensorboard]'")
        self._folder = Path()
        self._writer: RecordWriter | None = None
        self._began = 0.0
        """Seconds since 1970 at which the run would have begun, had it trained without a break."""

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        """See ``Logger``."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.close(failed=False)
        self._folder = run.folder / TENSORBOARD
        self._folder.mkdir(exist_ok=True)
        earlier = list(self._folder.glob(f"{_FILES}*"))
        now = time.time()
        self._began = now - (rows[-1]["seconds"] if rows else 0.0)
        name = f"{_FILES}{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._writer = RecordWriter((self._folder / name).open("xb"))
        version = Event(wall_time=now, file_version=_VERSION)
        # A TensorBoard that is open forgets what it has read of the run.
        start = Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START))
        self._write([version, start, *map(self._row, rows)])
        for file in earlier:
            file.unlink()

    def log(self, row: Row) -> None:
        """See ``Logger``."""
        self._write([self._row(row)])

    def samples(self, step: int, split: str, samples: Sequence[Sample]) -> None:
        """See ``Logger``. The captions are in the names of the images, which all of TensorBoard's pages show."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for number, sample in enumerate(samples, start=1):
            width, height = sample.image.size
            png = io.BytesIO()
            sample.image.convert("RGB").save(png, format="PNG")
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png.getvalue())
            values.append(Summary.Value(tag=f"samples {split}/{number:02d} {sample.caption}", image=image))
        self._write([Event(wall_time=time.time(), step=step, summary=Summary(value=values))])

    def report(self, step: int, page: Path) -> None:
        """See ``Logger``. TensorBoard shows no HTML: the page is copied beside the events, and a text names it."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        shutil.copyfile(page, self._folder / page.name)
        text = f"The report of this run is the file {page.name} beside these events, in the folder {self._folder}."
        value = Summary.Value(
            tag="report",
            metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
            tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
        )
        self._write([Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))])

    def close(self, failed: bool) -> None:
        """See ``Logger``. An event file does not say how a run ended."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _row(self, row: Row) -> "Event":
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in row.items() if name != "step"]
        return Event(wall_time=self._began + row["seconds"], step=int(row["step"]), summary=Summary(value=values))

    def _write(self, events: "Sequence[Event]") -> None:
        """Appends events and hands them to the operating system, so that a killed process loses none."""
        assert self._writer is not None, "a copy begins before anything is logged"
        try:
            for event in events:
                self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError:
            with suppress(OSError):  # of what could not be written
                self.close(failed=True)
            raise
