"""The copy of a run in trackio, on this machine: ``trackio show --project mmlm``."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from mmlm.core.errors import UserError
from mmlm.record.logger import LoggedRun, Row, Sample, check_installed

if TYPE_CHECKING:
    from trackio import Run

_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables that make trackio write to another machine."""


class Trackio:
    """A run of trackio's data base on this machine (in ``TRACKIO_DIR``, or its own folder in the user's cache).

    A session removes what the data base has of this run, and writes all of its rows anew. Rows that are already on
    another machine could not be removed, and would be there twice: so nothing is written to one.
    """

    def __init__(self, project: str) -> None:
        """Raises UserError if trackio is not installed, or would write to another machine."""
        check_installed("trackio", "'mmlm[trackio]'")
        for name in _ELSEWHERE:
            if os.environ.get(name):
                raise UserError(
                    f"logger: trackio is used on this machine only; unset {name}, and publish the project by trackio "
                    "sync afterwards"
                )
        self._project = project
        self._run: Run | None = None

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        """See ``Logger``."""
        import trackio

        self.close(failed=False)
        # trackio knows runs by their names, and a folder elsewhere may have the same.
        name = f"{run.name}-{run.identity()}"
        with _quiet():
            try:
                known = list(trackio.Api().runs(self._project))
            except ValueError:  # there is no such project yet
                known = []
            for earlier in known:
                if earlier.name == name:
                    earlier.delete()
            self._run = trackio.init(
                project=self._project,
                name=name,
                config=dict(run.config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """See ``Logger``."""
        values = {name: value for name, value in row.items() if name != "step"}
        self._started().log(values, step=int(row["step"]))

    def samples(self, step: int, split: str, samples: Sequence[Sample]) -> None:
        """See ``Logger``."""
        import trackio

        images = {
            f"samples {split}/{number:02d}": trackio.Image(sample.image, caption=sample.caption)
            for number, sample in enumerate(samples, start=1)
        }
        self._started().log(images, step=step)

    def report(self, step: int, page: Path) -> None:
        """See ``Logger``."""
        import trackio

        self._started().log({"report": trackio.Html(page, inject=False)}, step=step)

    def close(self, failed: bool) -> None:
        """See ``Logger``. trackio does not say how a run ended."""
        import trackio

        run, self._run = self._run, None
        if run is not None:
            with _quiet():
                trackio.finish()

    def _started(self) -> "Run":
        assert self._run is not None, "a copy begins before anything is logged"
        return self._run


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without what trackio prints, which would come in between the lines of a command."""
    with redirect_stdout(io.StringIO()):
        yield
