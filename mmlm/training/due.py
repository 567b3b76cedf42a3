"""What is due after an optimizer step."""

from dataclasses import dataclass

from mmlm.training.settings import FitSettings


@dataclass(frozen=True)
class Due:
    """What training does after an optimizer step, besides the next one.

    A function of the step and of the data alone: hence the same on every rank, and the same after a restart.
    """

    row: bool
    """A row of training metrics is logged."""
    evaluation: bool
    checkpoint: bool
    epoch_end: bool
    """Images of the epoch that could not be decoded are told, and forgotten."""
    last: bool
    """The run ends here."""

    @classmethod
    def after(cls, step: int, settings: FitSettings, epoch_ended: bool) -> "Due":
        """After ``step`` optimizer steps in all; everything is due after the last one."""
        last = step == settings.steps
        return cls(
            row=last or _is_multiple(step, settings.log_every),
            evaluation=last or _is_multiple(step, settings.eval_every),
            checkpoint=last or _is_multiple(step, settings.save_every),
            epoch_end=last or epoch_ended,
            last=last,
        )

    @property
    def any(self) -> bool:
        """Whether something is due that has to know the results of all steps so far."""
        return self.row or self.evaluation or self.checkpoint or self.epoch_end


def is_diagnosed(step: int, settings: FitSettings) -> bool:
    """Whether the optimizer step after ``step`` others is diagnosed: the first, and each that ends an interval."""
    return settings.diagnose_every is not None and (step == 0 or _is_multiple(step + 1, settings.diagnose_every))


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
