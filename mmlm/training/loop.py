"""``fit()``: the training story. It is handed its parts and knows no model, objective or evaluator by name.

Three rules make a run that was stopped, anywhere and any number of times, the run that was never stopped:

- What a step draws from torch's generators is a function of (seed, step, rank): they are seeded anew at every step. So
  their state need not be saved, and no evaluation or restart in between can move them.
- The CPU reads each step's result one step late, so that it never waits for the GPU. Decisions depend on the step and
  the data only, never on how late a result arrived: before a row is logged, an evaluation or a checkpoint, the results
  of all steps are read.
- All ranks decide by the same numbers, which are reduced over ranks in the step itself.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mmlm.core.batch import Batch
from mmlm.core.distributed import rank, sum_over_ranks, world_size
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import keyed_integer
from mmlm.core.precision import Precision
from mmlm.core.stop import EndedBySignal, StopAsked, StopRequest, asked_by
from mmlm.data.loader import UnreadableBatch
from mmlm.data.unreadable import BadLimits, Unreadable
from mmlm.optim.loss_scale import LossScale
from mmlm.optim.optimizers import set_learning_rate
from mmlm.optim.schedules import Schedule
from mmlm.training.agreement import MadeStep
from mmlm.training.due import Due, is_diagnosed
from mmlm.training.messages import name_ids
from mmlm.training.pending import Pending
from mmlm.training.reporter import Reporter
from mmlm.training.settings import FitSettings
from mmlm.training.spikes import LossSpike
from mmlm.training.train_state import TrainState
from mmlm.training.update import Differentiate, Update
from mmlm.training.waiting import DataWaits
from mmlm.training.work import CountPlaces, Work

Evaluate = Callable[[int], Mapping[str, float]]
"""Called with the step, while the module is in eval mode and holds the weights to judge; returns values by name, the
same on every rank."""


class Checkpoints(Protocol):
    """Where the states of a run are kept."""

    def save(self, state: TrainState, is_best: bool) -> None:
        """Keeps the state; ``is_best`` says that its evaluation is the best so far."""
        ...

    def restore(self, state: TrainState, step: int) -> None:
        """Loads the checkpoint of ``step``, or an earlier one if that is damaged. For loss spikes only."""
        ...


@dataclass(frozen=True)
class FitParts:
    """What training is made of, besides the state that it changes."""

    schedule: Schedule
    """Learning rate as a share of its peak."""
    differentiate: Differentiate
    device: torch.device
    """Where batches go."""
    evaluate: Evaluate
    checkpoints: Checkpoints
    bad_limits: BadLimits | None = None
    """How many examples may be unreadable; None: any number."""
    places: CountPlaces | None = None
    """How many places a step computes for text tokens; None: they are not counted."""


def unwatched(what: str) -> None:
    """The ``Watch.mark`` of a run without a watchdog."""


def unnoted(step: int, ids: Sequence[str]) -> None:
    """The ``Watch.doing`` of a run that leaves no trace."""


@dataclass(frozen=True)
class Watch:
    """What reaches into training from outside."""

    request: StopRequest
    """Whether this process has been asked to stop; the caller of ``fit`` decides by which signals."""
    mark: Callable[[str], None] = unwatched
    """Called with what is about to be done (``step 12: waiting for data``), for a watchdog; at the same places on all
    ranks."""
    doing: Callable[[int, Sequence[str]], None] = unnoted
    """Called with the optimizer step, from 1, that begins: without ids before its batch is there, then with them."""


class Interrupted(Exception):  # noqa: N818 - no error: what was asked for has been done
    """Training was asked to stop by ``signal_name``, here or on another rank, and has saved its state at ``step``."""

    def __init__(self, step: int, signal_name: str) -> None:
        super().__init__(f"stopped at step {step} by {signal_name}")
        self.step = step
        self.signal_name = signal_name


def fit(state: TrainState, settings: FitSettings, parts: FitParts, reporter: Reporter, watch: Watch) -> None:
    """Trains ``state`` in place up to ``settings.steps`` optimizer steps. All ranks call it together.

    ``state`` is fresh or resumed. What is logged, evaluated and saved when follows from ``settings``; see ``Due``.

    Raises:
        Interrupted: after one of ``mmlm.core.stop.SIGNALS`` on any rank, once the state is saved: after the step that
            it is in, within an evaluation, or while a single process waits for data.
        NonFiniteLoss: with the step and the batch's ids, after saving the state without that step's update.
        TooManyUnreadable: examples beyond ``parts.bad_limits``, after saving.
        LossSpike: one more than ``settings.spike.max_rewinds``.
        UserError: ``settings.best_metric`` is not among the values of ``parts.evaluate``, before the first step; or
            data cannot be read any more, after saving.
    """
    begun = time.monotonic() - state.seconds
    state.train_step.train()
    if settings.precision is Precision.fp16 and state.loss_scale is None:
        state.loss_scale = LossScale.start(parts.device)
    _stop_if_asked(state, parts.device, watch.request)
    _begin(state, settings, parts, reporter)
    state.window.start()
    begun_at = state.step
    update = Update(
        parts.differentiate,
        parts.device,
        settings.precision,
        settings.micro_batch_size,
        settings.clip_norm,
        parts.places,
    )
    pending, batches = Pending(settings, reporter.console, parts.bad_limits), iter(state.loader)
    waits = DataWaits()
    with reporter.console.progress(settings.steps, state.step) as progress:
        while state.step < settings.steps:
            # One optimizer step. All of its work is given to the device; the CPU reads none of its results yet.
            torch.manual_seed(keyed_integer(state.seed, state.step, rank()))
            watch.mark(f"step {state.step + 1}: waiting for data")
            watch.doing(state.step + 1, ())
            asked = time.monotonic()
            try:
                batch = _next(batches, watch.request)
            except (EndedBySignal, UserError) as end:
                # What has been trained is not lost with the data, nor while waiting for it.
                if state.step > begun_at and _is_everywhere(end):
                    watch.mark(f"step {state.step}: saving")
                    _save_between_steps(state, settings, parts, reporter, pending)
                if isinstance(end, EndedBySignal):
                    raise Interrupted(state.step, end.signal_name) from None
                raise
            waited = time.monotonic() - asked
            state.window.work += Work(waited=waited)
            watch.mark(f"step {state.step + 1}: training")
            watch.doing(state.step + 1, batch.ids)
            lr = set_learning_rate(state.optimizer, parts.schedule(state.step, settings.steps))
            pending.add(update(state, batch, is_diagnosed(state.step, settings), watch.request))
            state.go_to(state.step + 1)
            state.position = batch.position
            state.seconds = time.monotonic() - begun
            progress.step(state.step)

            # What is due now. An evaluation is owed until it is done: a run that stops before it makes it on resuming.
            due = Due.after(state.step, settings, state.loader.epoch_at(batch.position) != batch.epoch)
            state.owes_evaluation = due.evaluation

            # The results: all but the newest step's, or all of them where something is due that depends on them.
            found = pending.read(state, everything=due.any)
            advice = waits.add(waited, time.monotonic() - asked)
            if advice is not None:
                reporter.console.line(advice)
            if found.spike is not None:
                if found.failure is not None:
                    raise found.failure
                _rewind(state, settings, found.spike, parts.checkpoints, reporter)
                batches = iter(state.loader)
                continue

            # Tell, judge, save: in this order, so that whatever a checkpoint holds has been told before.
            # A run that stops leaves the evaluation to the next session: whoever stops it does not want to wait.
            stop_signal = found.signal_name
            ends_early = stop_signal is not None or found.failure is not None
            is_best = False
            if due.row:
                reporter.row(state, lr, settings.batch_size, progress)
            if due.evaluation and not ends_early:
                watch.mark(f"step {state.step}: evaluating")
                with state.window.paused():
                    is_best = _judge(state, settings, parts, reporter)
            if due.epoch_end or ends_early:
                reporter.corrupt(state, batch.epoch)
            if due.epoch_end:
                state.corrupt = Unreadable()
            if due.checkpoint or is_best or ends_early:
                watch.mark(f"step {state.step}: saving")
                parts.checkpoints.save(state, is_best)

            # End early, now that the state is saved.
            if found.failure is not None:
                raise found.failure
            if stop_signal is not None:
                raise Interrupted(state.step, stop_signal)


def _stop_if_asked(state: TrainState, device: torch.device, request: StopRequest) -> None:
    """Raises Interrupted on all ranks if one was asked to stop before training: nothing has changed yet."""
    flags = sum_over_ranks(torch.tensor(request.flags(), dtype=torch.float64, device=device)).tolist()
    signal_name = asked_by(flags)
    if signal_name is not None:
        raise Interrupted(state.step, signal_name)


def _next(batches: Iterator[Batch], request: StopRequest) -> Batch:
    """The next batch. Data may never come: a signal then raises EndedBySignal at once, unless there are other ranks.

    (These may be in the step already, and wait for this rank. Their limit is ``ranks.timeout_seconds``.)
    """
    if world_size() > 1:
        return next(batches)
    with request.at_once():
        return next(batches)


def _is_everywhere(end: BaseException) -> bool:
    """Whether all ranks raise it at the same place, so that they can save together."""
    return world_size() == 1 or isinstance(end, UnreadableBatch)


def _save_between_steps(
    state: TrainState, settings: FitSettings, parts: FitParts, reporter: Reporter, pending: Pending
) -> None:
    """Reads what has not been read, and saves the state as it is after its last step. All ranks call it."""
    found = pending.read(state, everything=True)
    if found.spike is not None:
        _rewind(state, settings, found.spike, parts.checkpoints, reporter)
    reporter.corrupt(state, state.loader.epoch_at(max(0, state.position - 1)))
    parts.checkpoints.save(state, False)
    if found.failure is not None:
        raise found.failure


def _begin(state: TrainState, settings: FitSettings, parts: FitParts, reporter: Reporter) -> None:
    """Evaluates and saves what has to be there before the first step of a run, or of what is left of one."""
    fresh, owed, is_best = state.step == 0 and state.rewinds == 0, state.owes_evaluation, False
    if state.owes_evaluation or (fresh and settings.best_metric is not None):
        # At the start an evaluation refuses a name that is not evaluated, and is what training has to beat.
        is_best = _judge(state, settings, parts, reporter)
    wanted = settings.best_metric is not None or settings.spike.threshold is not None
    # An evaluation that was owed must not be made, and its row written, a second time if this session ends early.
    if is_best or owed or (fresh and wanted):
        parts.checkpoints.save(state, is_best)


def _judge(state: TrainState, settings: FitSettings, parts: FitParts, reporter: Reporter) -> bool:
    """Evaluates the state and logs the values; returns whether they are the best so far."""
    try:
        with state.evaluating():
            values = parts.evaluate(state.step)
        if settings.best_metric is not None and settings.best_metric not in values:
            names = ", ".join(sorted(values))
            raise UserError(f"train.best_metric: '{settings.best_metric}' is not evaluated; there are: {names}")
    except StopAsked as stop:
        # The evaluation is owed until it is done, and made by whoever goes on.
        if state.step > 0:
            parts.checkpoints.save(state, False)
        raise Interrupted(state.step, stop.signal_name) from None
    except Exception:
        if state.step > 0:
            parts.checkpoints.save(state, False)  # what has been trained is not lost with an evaluation
        raise
    reporter.values(state, values)
    state.owes_evaluation = False
    value = math.nan if settings.best_metric is None else values[settings.best_metric]
    if math.isnan(value) or (state.best is not None and value <= state.best):
        return False
    state.best = value
    return True


def _rewind(
    state: TrainState, settings: FitSettings, spike: MadeStep, checkpoints: Checkpoints, reporter: Reporter
) -> None:
    """Goes back to the checkpoint before a loss spike, and on with the data after the batch that had it."""
    loss, most = spike.result.verdict().loss, settings.spike.max_rewinds
    what = f"step {spike.step}: the loss {loss:g} is a spike on the batch {name_ids(spike.ids)}"
    if state.rewinds >= most:
        raise LossSpike(f"{what}; train.spike.max_rewinds is {most}; lower optim.lr or look at these examples")
    back_to = settings.spike.goes_back_to(spike.step, settings.save_every)
    assert back_to is not None, "the config refuses spikes without checkpoints"
    state.rewind(back_to, spike.position, checkpoints.restore)
    state.window.start()
    reporter.log.resume_from(state.step)
    counted = f"{state.rewinds} of at most {most}"
    reporter.console.line(f"{what}; back to step {state.step} and on with the data after it ({counted})")
