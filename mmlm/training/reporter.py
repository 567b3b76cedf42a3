"""What training tells: rows of metrics to the log, lines to the console."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmlm.core.distributed import gather_objects
from mmlm.record.console import Console, Progress
from mmlm.record.metrics import Log
from mmlm.training.messages import describe_corrupt
from mmlm.training.train_state import TrainState
from mmlm.training.window import Window


@dataclass(frozen=True)
class Reporter:
    """Where metrics and messages go. Ranks other than 0 have a ``NoLog`` and a quiet console."""

    log: Log
    console: Console

    def row(self, state: TrainState, lr: float, batch_size: int, progress: Progress) -> None:
        """Logs the means over the steps since the last row, shows them, and begins the next window. All ranks call it.

        ``batch_size`` is in examples of all ranks, ``lr`` the learning rate of the last step.
        """
        row = state.window.means()
        shown = {**row.shown, "lr": lr, "examples_per_second": state.window.rate(batch_size)}
        # What does not concern a run is left out.
        skipped = {"skipped_steps": state.skipped_steps} if state.skipped_steps else {}
        scale = {} if state.loss_scale is None else {"loss_scale": state.loss_scale.scale.item()}
        values = {**shown, **row.hidden, **skipped, **scale}
        self.values(state, {f"train/{name}": value for name, value in values.items()})
        progress.update(state.step, shown)
        state.window = Window()

    def values(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Logs values of the run as it is now."""
        self.log.log(state.step, state.position, state.seconds, values)

    def corrupt(self, state: TrainState, epoch: int) -> None:
        """Names the images of an epoch that some rank could not decode so far. All ranks call it."""
        corrupt = [entry for entries in gather_objects(state.corrupt) for entry in entries]
        if corrupt:
            self.console.line(describe_corrupt(f"epoch {epoch}", corrupt))
