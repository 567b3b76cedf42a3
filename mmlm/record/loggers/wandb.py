"""The copy of a run at Weights & Biases (wandb): uploaded while it trains, or kept in the run folder until then."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmlm.core.errors import UserError
from mmlm.record.logger import LoggedRun, Row, Sample, check_installed

if TYPE_CHECKING:
    from wandb import Run

_START_SECONDS = 15
"""How long wandb may take to start, once to log in and once to begin the run."""
_UPLOAD_SECONDS = 60.0
"""How long wandb may take, at the end of a run, to upload what is left."""


Mode = Literal["offline", "online"]
"""When the copy is uploaded: later, by ``wandb sync``, or while the run trains."""


class Wandb:
    """Writes below the run folder only, prints nothing, and gives up in bounded time.

    Every session of an offline run is a file of its own, and of several files with one id, each that is synced takes
    the place of the one before (wandb's issue 3841). So a session writes all rows of the run anew, and then removes the
    files of the sessions before it: one file is one curve. An online run is continued at the server, which takes no row
    before its last one: rows that a resumed run makes a second time stay as they were, and rows that were lost on the
    way are sent again. After a loss spike, an online curve therefore has the values from before the run went back.
    """

    def __init__(self, mode: Mode, project: str, entity: str | None, tags: list[str]) -> None:
        """``entity`` None is the account's default. Raises UserError if wandb is not installed."""
        check_installed("wandb", "wandb")
        self._mode, self._project, self._entity, self._tags = mode, project, entity, tags
        self._run: Run | None = None
        self._next = 0

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        """See ``Logger``."""
        offline = self._mode == "offline"
        if self._run is not None and offline:
            self.close(failed=False)
        earlier = _parts(run) if offline else []
        if self._run is None:
            self._run = self._start(run)
            self._next = 0 if offline else self._run.starting_step
        for row in rows:
            self.log(row)
        for part in earlier:
            shutil.rmtree(part, ignore_errors=True)  # one that stays is synced first, and gives way to the new one

    def _start(self, run: LoggedRun) -> "Run":
        import wandb  # takes a second, and most runs do without

        limits = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            init_timeout=_START_SECONDS,
            finish_timeout=_UPLOAD_SECONDS,
        )
        # init() would ask for an account, and wait for the answer without a limit, whatever its settings say.
        if self._mode == "online" and not wandb.login(timeout=_START_SECONDS):
            raise UserError("nobody is logged in; run `wandb login` before, or take logger.wandb.mode=offline")
        started = wandb.init(
            project=self._project,
            entity=self._entity,
            tags=self._tags,
            name=run.name,
            id=run.identity(),
            resume="allow" if self._mode == "online" else None,
            dir=run.folder,
            mode=self._mode,
            config=dict(run.config),
            settings=limits,
        )
        # Our own step as the axis, also where wandb's own count and ours differ.
        started.define_metric("*", step_metric="step")
        return started

    def log(self, row: Row) -> None:
        """See ``Logger``."""
        step = int(row["step"])
        if step >= self._next:
            self._started().log(dict(row), step=step)

    def samples(self, step: int, split: str, samples: Sequence[Sample]) -> None:
        """See ``Logger``."""
        import wandb

        images = [wandb.Image(sample.image, caption=sample.caption) for sample in samples]
        self._started().log({"step": step, f"samples/{split}": images}, step=step)

    def report(self, step: int, page: Path) -> None:
        """See ``Logger``."""
        import wandb

        self._started().log({"step": step, "report": wandb.Html(page, inject=False)}, step=step)

    def close(self, failed: bool) -> None:
        """See ``Logger``."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=int(failed))

    def _started(self) -> "Run":
        assert self._run is not None, "a copy begins before anything is logged"
        return self._run


def _parts(run: LoggedRun) -> list[Path]:
    """The folders that earlier sessions of an offline run have left."""
    return sorted(file.parent for file in run.folder.glob(f"wandb/offline-run-*/run-{run.identity()}.wandb"))
