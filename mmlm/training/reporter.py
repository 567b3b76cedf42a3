"""What training tells: rows of metrics to the log, lines to the console."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmlm.core.distributed import gather_objects
from mmlm.core.figure import Figure, declared, setting_of_training
from mmlm.data.unreadable import Unreadable
from mmlm.record.console import Console, Progress
from mmlm.record.metrics import Log
from mmlm.training.diagnosis import FIGURES as OF_DIAGNOSES
from mmlm.training.messages import describe_corrupt
from mmlm.training.train_state import TrainState
from mmlm.training.window import Window, row_figures
from mmlm.training.work import FIGURES as OF_WORK
from mmlm.training.work import OF_THE_CLOCK as OF_WORK_BY_THE_CLOCK
from mmlm.training.work import SPEED, Spent

_OF_THE_LOOP = {
    "lr": setting_of_training("learning rate", "of the last step"),
    "examples_per_second": Figure(
        "examples a second", "of all ranks; evaluations do not count", SPEED, shown=("chart",)
    ),
    "skipped_steps": Figure("skipped steps", "left out since the start, for gradients that were not finite"),
    "loss_scale": Figure("loss scale", "of float16", log_scale=True),
}


OF_THE_CLOCK = frozenset({"examples_per_second"}) | OF_WORK_BY_THE_CLOCK
"""The values of a row that no two runs have alike; in ``metrics.jsonl`` their names begin with ``train/``."""


def training_figures(of_objectives: Mapping[str, Figure]) -> dict[str, Figure]:
    """What the names in a row of training are: those that the objectives declare, and those of training itself."""
    return {**_OF_THE_LOOP, **row_figures(of_objectives), **OF_WORK, **OF_DIAGNOSES}


@dataclass(frozen=True)
class Reporter:
    """Where metrics and messages go. Ranks other than 0 have a ``NoLog`` and a quiet console."""

    log: Log
    console: Console
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """What the names in a row are (``training_figures``); what is not declared is shown on the console."""
    flops: Callable[[Spent], Mapping[str, float]] | None = None
    """The figures that follow from the FLOPs of the model, ``tflops_per_second`` and ``mfu``; None: unknown."""

    def row(self, state: TrainState, lr: float, batch_size: int, progress: Progress) -> None:
        """Logs the means over the steps since the last row, shows them, and begins the next window. All ranks call it.

        ``batch_size`` is in examples of all ranks, ``lr`` the learning rate of the last step.
        """
        row, rate = state.window.means(), state.window.rate(batch_size)
        # What does not concern a run is left out.
        skipped = {"skipped_steps": state.skipped_steps} if state.skipped_steps else {}
        scale = {} if state.loss_scale is None else {"loss_scale": state.loss_scale.scale.item()}
        shown = {**row.shown, "lr": lr}
        spent = state.window.spent(next(state.train_step.parameters()).device)
        flops = {} if self.flops is None else self.flops(spent)
        values = {**shown, "examples_per_second": rate, **spent.values(), **flops, **row.hidden, **skipped, **scale}
        self.values(state, {f"train/{name}": value for name, value in values.items()})
        progress.update(state.step, {name: value for name, value in shown.items() if self._is_on_console(name)}, rate)
        state.window = Window()

    def _is_on_console(self, name: str) -> bool:
        return name not in self.figures or "console" in declared(self.figures, name).shown

    def values(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Logs values of the run as it is now."""
        self.log.log(state.step, state.position, state.seconds, values)

    def corrupt(self, state: TrainState, epoch: int) -> None:
        """Names the images of an epoch that some rank could not decode so far. All ranks call it."""
        corrupt = Unreadable.joined(gather_objects(state.corrupt))
        if corrupt:
            self.console.line(describe_corrupt(f"epoch {epoch}", corrupt))
