"""Steps whose results have not been read yet, and what reading them brings to light."""

from collections import deque
from dataclasses import dataclass
from itertools import chain

from mmlm.core.distributed import gather_objects
from mmlm.core.errors import UserError
from mmlm.data.unreadable import BadLimits, Unreadable, describe_too_many
from mmlm.record.console import Console
from mmlm.training.agreement import MadeStep
from mmlm.training.messages import NonFiniteLoss, TooManyUnreadable, describe_skipped
from mmlm.training.settings import FitSettings
from mmlm.training.train_state import TrainState


@dataclass
class Found:
    """What the results of some steps say; the same on every rank."""

    signal_name: str | None = None
    """The signal by which some rank was asked to stop."""
    spike: MadeStep | None = None
    """The step whose loss is a spike."""
    failure: UserError | None = None
    """Why the run ends: one update more was left out than ``FitSettings.max_skipped_steps`` allows (NonFiniteLoss), or
    too many examples cannot be read (TooManyUnreadable)."""


class Pending:
    """The steps that the device has been given and whose results the CPU has not read, oldest first.

    Reading a result waits for the device. Read one step late, the result is there already, and the device always has
    work. ``TrainState`` counts a step only once it has been read.
    """

    def __init__(self, settings: FitSettings, console: Console, bad_limits: BadLimits | None) -> None:
        self._settings = settings
        self._bad_limits = bad_limits
        self._console = console
        self._made: deque[MadeStep] = deque()

    def add(self, made: MadeStep) -> None:
        """Takes a step that has just been given to the device."""
        self._made.append(made)

    def read(self, state: TrainState, everything: bool) -> Found:
        """Reads all steps, or all but the newest, and enters their results into ``state``. All ranks call it.

        The newest is read all the same if the run is about to stop: nothing may be lost then. No step is left after a
        loss spike: the caller goes back to before it, so what was made since is undone.
        """
        found = Found()
        while len(self._made) > (0 if everything or found.signal_name or found.failure else 1):
            made = self._made.popleft()
            verdict = made.result.verdict()
            found.signal_name = found.signal_name or verdict.signal_name
            state.corrupt.add(made.corrupt)
            if verdict.corrupt and self._bad_limits is not None:
                found.failure = found.failure or self._too_many(state, made, self._bad_limits)
            state.window.steps += 1
            state.window.work += made.work
            if not verdict.updated:
                # An overflow of float16 is no fault of the step: the loss scale has been lowered already.
                if not verdict.overflowed:
                    found.failure = self._left_out(state, made) or found.failure
            elif self._settings.spike.is_spike(verdict.loss, state.recent_losses):
                found.spike = made
                self._made.clear()
            else:
                state.window.add(made.loss, made.norm)
                state.window.add_figures(made.update_ratios)
                state.recent_losses = self._settings.spike.remembered(verdict.loss, state.recent_losses)
        return found

    def _too_many(self, state: TrainState, made: MadeStep, limits: BadLimits) -> TooManyUnreadable | None:
        """Counts the examples of a batch that could not be read; returns why the run ends, if those were too many."""
        positions = sorted(chain.from_iterable(gather_objects(made.corrupt_at)))
        passed = state.bad.add(positions, limits)
        if passed is None:
            return None
        return TooManyUnreadable(describe_too_many(passed, Unreadable.joined(gather_objects(state.corrupt))))

    def _left_out(self, state: TrainState, made: MadeStep) -> NonFiniteLoss | None:
        """Counts and tells a step whose update was left out; returns why the run ends, if that was one too many."""
        state.skipped_steps += 1
        what, most = describe_skipped(made), self._settings.max_skipped_steps
        self._console.line(f"{what}; its update is left out ({state.skipped_steps} so far, at most {most})")
        if state.skipped_steps <= most:
            return None
        return NonFiniteLoss(
            f"{what}; that is update {state.skipped_steps} to be left out, and train.max_skipped_steps is {most}; the "
            "state without it is saved; lower optim.lr or look at these examples"
        )
