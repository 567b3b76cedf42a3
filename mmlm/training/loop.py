"""``fit()``: the training story. It is handed its parts and knows no model, objective or evaluator by name.

Three rules make a run that was stopped, anywhere and any number of times, the run that was never stopped:

- What a step draws from torch's generators is a function of (seed, step, rank): they are seeded anew at every step. So
  nothing of them has to be saved, and no evaluation or restart in between can move them.
- The host learns what a step gave (finite? a spike? stop?) while the device makes the next one, but never acts on the
  difference: what is decided depends on the step alone, and all is read before anything is told, judged or saved.
- All ranks decide by the same numbers, reduced in the step itself.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mmlm.core.distributed import gather_objects, rank
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import keyed_integer
from mmlm.core.precision import Precision
from mmlm.core.stop import StopRequest
from mmlm.optim.loss_scale import LossScale
from mmlm.optim.optimizers import set_learning_rate
from mmlm.optim.schedules import Schedule
from mmlm.record.console import Console
from mmlm.record.metrics import Log
from mmlm.training.agreement import MadeStep
from mmlm.training.messages import NonFiniteLoss, describe_corrupt, describe_skipped, name_ids
from mmlm.training.spikes import LossSpike, SpikeSettings
from mmlm.training.train_state import TrainState
from mmlm.training.update import Differentiate, Update
from mmlm.training.window import Row, Window


@dataclass
class FitSettings:
    """How long and how carefully to train."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 128
    """Examples a step, over all ranks."""
    micro_batch_size: int | None = None
    """Examples a forward and backward pass, on each rank; the gradient is that of the whole batch all the same, only
    slower and in less memory. null takes all at once."""
    precision: Precision = Precision.auto
    """``bf16`` (autocast, float32 parameters), ``fp16`` (likewise, with a dynamic loss scale), ``fp32``, or ``auto``:
    bf16 where the device is fast in it, else fp32. A run goes on in what it began with."""
    clip_norm: float | None = 1.0
    """Largest L2 norm of all gradients together; null turns clipping off."""
    max_skipped_steps: int = 3
    """Optimizer steps of a run whose update may be left out because the loss or a gradient was infinite or not a
    number; one more ends it. (Gradients that overflow in fp16 lower the loss scale and do not count.)"""
    spike: SpikeSettings = field(default_factory=SpikeSettings)
    ema_decay: float | None = None
    """Decay of the moving average of the weights that is evaluated and exported, such as 0.999; null turns it off."""
    activation_checkpointing: bool = False
    """Keep nothing but the input of each block of the model for the backward pass and compute it again there: the same
    gradients to the last bit, in less memory and about a third more time."""
    compile: bool = False
    """Compile each block of the model (``torch.compile``) for training; equal up to rounding. The first steps take
    minutes."""
    log_every: int = 20
    """Optimizer steps between rows of training metrics."""
    diagnose_every: int | None = 100
    """Optimizer steps between diagnoses (the first step has one): gradients of each objective at the bridge, spread of
    the embeddings, and how far a step moves the weights. It changes nothing of what is trained; null makes none."""
    eval_every: int | None = 500
    """Optimizer steps between evaluations; null evaluates at the end only."""
    save_every: int | None = 500
    """Optimizer steps between checkpoints; null saves at the end only."""
    keep_last: int = 2
    """Checkpoints kept besides the best one."""
    best_metric: str | None = None
    """Evaluation value, larger is better, that decides the best checkpoint, such as val_style/captioning/CIDEr-D; it is
    then evaluated before the first step too. null keeps no best one."""


Evaluate = Callable[[int], Mapping[str, float]]


class Interrupted(Exception):  # noqa: N818 - no error: what was asked for has been done
    """Training was asked to stop by ``signal_name``, here or on another rank, and has saved its state at ``step``."""

    def __init__(self, step: int, signal_name: str) -> None:
        super().__init__(f"stopped at step {step} by {signal_name}")
        self.step = step
        self.signal_name = signal_name


def unwatched(what: str) -> None:
    """Tells nobody what is about to be done."""


def fit(
    state: TrainState,
    settings: FitSettings,
    schedule: Schedule,
    differentiate: Differentiate,
    device: torch.device,
    log: Log,
    console: Console,
    evaluate: Evaluate,
    save: Callable[[TrainState, bool], None],
    restore: Callable[[TrainState, int], None],
    request: StopRequest,
    mark: Callable[[str], None] = unwatched,
) -> None:
    """Trains ``state`` in place up to ``settings.steps`` optimizer steps. All ranks call it, and everything it calls.

    Args:
        state: module, optimizer, loader and counters, fresh or resumed.
        settings: length, precision, intervals.
        schedule: learning rate as a share of its peak.
        differentiate: leaves the gradients of a batch's loss on the parameters; see ``mmlm/training/train_step.py``.
        device: where batches go.
        log: takes every row of metrics (``NoLog`` on ranks other than 0).
        console: shows progress (quiet on ranks other than 0).
        evaluate: called with the step, module in eval mode and holding the weights to judge; returns named values, the
            same on every rank.
        save: called with the state and whether it is the best so far.
        restore: called with the state and a step: loads the checkpoint of that step into the state, or an earlier one
            if that is damaged. For loss spikes only.
        request: whether this process has been asked to stop; whoever calls decides by what (``stop_request``).
        mark: called with what is about to be done (``step 12: waiting for data``), for a watchdog; at the same places
            on all ranks.

    Raises:
        Interrupted: after one of ``mmlm.core.stop.SIGNALS`` on any rank, once a step is done and its state saved.
        NonFiniteLoss: with the step and the batch's ids, after saving the state without that step's update.
        LossSpike: one more than ``settings.spike.max_rewinds``.
        UserError: ``settings.best_metric`` is not among the values of ``evaluate``, before the first step.
    """
    begun = time.monotonic() - state.seconds
    batches, unread = iter(state.loader), deque[MadeStep]()
    state.train_step.train()
    if settings.precision is Precision.fp16 and state.loss_scale is None:
        state.loss_scale = LossScale.start(device)
    _begin(state, settings, log, evaluate, save)
    state.window.start()
    update = Update(differentiate, device, settings.precision, settings.micro_batch_size, settings.clip_norm)
    with console.progress(settings.steps, state.step) as progress:
        while state.step < settings.steps:
            torch.manual_seed(keyed_integer(state.seed, state.step, rank()))
            mark(f"step {state.step + 1}: waiting for data")
            epoch, batch = state.loader.epoch, next(batches)
            mark(f"step {state.step + 1}: training")
            lr = set_learning_rate(state.optimizer, schedule(state.step, settings.steps))
            diagnosed = _is_diagnosed(state.step, settings.diagnose_every)
            unread.append(update(state, batch, diagnosed, request))
            state.go_to(state.step + 1)
            state.seconds = time.monotonic() - begun

            last = state.step == settings.steps
            row_due, save_due = (last or _due(state.step, n) for n in (settings.log_every, settings.save_every))
            state.owes_evaluation = last or _due(state.step, settings.eval_every)
            epoch_ended = last or state.loader.epoch != epoch
            all_due = row_due or save_due or state.owes_evaluation or epoch_ended
            found = _read(state, settings, unread, 0 if all_due else 1, console)
            if found.spike is not None:
                if found.failure is not None:
                    raise NonFiniteLoss(found.failure)
                _rewind(state, settings, found.spike, log, console, restore)
                batches = iter(state.loader)
                continue
            stopping = found.signal_name is not None and not last
            if row_due:
                row = state.window.means()
                shown = row.shown | {"lr": lr, "examples_per_second": state.window.rate(settings.batch_size)}
                values = {f"train/{name}": value for name, value in (shown | _more(state, row)).items()}
                log.log(state.step, state.loader.position, state.seconds, values)
                progress.update(state.step, shown)
                state.window = Window()
            is_best = False
            if state.owes_evaluation and not stopping and found.failure is None:
                mark(f"step {state.step}: evaluating")
                with state.window.paused():
                    is_best = _evaluate(state, settings, log, evaluate, save)
            if epoch_ended or stopping or found.failure is not None:
                _report_corrupt(state, epoch, console, epoch_ended)
            if is_best or last or stopping or save_due or found.failure is not None:
                mark(f"step {state.step}: saving")
                save(state, is_best)
            if found.failure is not None:
                raise NonFiniteLoss(found.failure)
            if stopping:
                raise Interrupted(state.step, found.signal_name)


def _begin(
    state: TrainState,
    settings: FitSettings,
    log: Log,
    evaluate: Evaluate,
    save: Callable[[TrainState, bool], None],
) -> None:
    """What has to be there before the first step of a run, or of what is left of one."""
    fresh, is_best = state.step == 0 and state.rewinds == 0, False
    if state.owes_evaluation or (fresh and settings.best_metric is not None):
        # At the start it refuses a name that is not evaluated, and is what training has to beat.
        is_best = _evaluate(state, settings, log, evaluate, save)
    if is_best or (fresh and settings.best_metric is not None) or (fresh and settings.spike.threshold is not None):
        save(state, is_best)


@dataclass
class _Found:
    """What reading steps brought to light, the same on every rank."""

    signal_name: str | None = None
    spike: MadeStep | None = None
    failure: str | None = None
    """One step too many was left out."""


def _read(state: TrainState, settings: FitSettings, unread: deque[MadeStep], leave: int, console: Console) -> _Found:
    """Takes down what the steps gave, oldest first; ``leave`` so many of the newest, unless the run is about to stop.

    Nothing is left after a spike: what was made since is undone.
    """
    found = _Found()
    while len(unread) > (leave if found.signal_name is None and found.failure is None else 0):
        made = unread.popleft()
        verdict = made.agreement.verdict()
        found.signal_name = found.signal_name or verdict.signal_name
        state.corrupt += made.corrupt
        state.window.steps += 1
        if verdict.updated and settings.spike.is_spike(verdict.loss, state.recent_losses):
            found.spike = made
            unread.clear()
        elif verdict.updated:
            state.window.add(made.loss, made.norm)
            state.window.add_figures(made.update_ratios)
            state.recent_losses = settings.spike.remembered(verdict.loss, state.recent_losses)
        elif not verdict.overflowed:
            state.skipped_steps += 1
            what, most = describe_skipped(made), settings.max_skipped_steps
            console.line(f"{what}; its update is left out ({state.skipped_steps} so far, at most {most})")
            if state.skipped_steps > most:
                found.failure = (
                    f"{what}; that is update {state.skipped_steps} to be left out, and train.max_skipped_steps is "
                    f"{most}; the state without it is saved; lower optim.lr or look at these examples"
                )
    return found


def _rewind(
    state: TrainState,
    settings: FitSettings,
    spike: MadeStep,
    log: Log,
    console: Console,
    restore: Callable[[TrainState, int], None],
) -> None:
    """Goes back to before a loss spike, and on with the data after it."""
    loss, most = spike.agreement.verdict().loss, settings.spike.max_rewinds
    what = f"step {spike.step}: the loss {loss:g} is a spike on the batch {name_ids(spike.ids)}"
    if state.rewinds >= most:
        raise LossSpike(f"{what}; train.spike.max_rewinds is {most}; lower optim.lr or look at these examples")
    state.rewind(settings.spike.goes_back_to(spike.step, settings.save_every), spike.position, restore)
    state.window.start()
    log.resume_from(state.step)
    console.line(f"{what}; back to step {state.step} and on with the data after it ({state.rewinds} of at most {most})")


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _is_diagnosed(step: int, every: int | None) -> bool:
    """Whether optimizer step ``step`` (from 0) is: the first, and each that makes the number of steps a multiple."""
    return every is not None and (step == 0 or (step + 1) % every == 0)


def _more(state: TrainState, row: Row) -> dict[str, float]:
    """What a row of metrics tells besides what is shown; what does not concern a run is left out."""
    skipped = {"skipped_steps": state.skipped_steps} if state.skipped_steps else {}
    scale = {} if state.loss_scale is None else {"loss_scale": state.loss_scale.scale.item()}
    return {**row.hidden, **skipped, **scale}


def _evaluate(
    state: TrainState, settings: FitSettings, log: Log, evaluate: Evaluate, save: Callable[[TrainState, bool], None]
) -> bool:
    """Logs the evaluation's values; says whether they are the best so far."""
    try:
        with state.evaluating():
            values = evaluate(state.step)
        if settings.best_metric is not None and settings.best_metric not in values:
            names = ", ".join(sorted(values))
            raise UserError(f"train.best_metric: '{settings.best_metric}' is not evaluated; there are: {names}")
    except Exception:
        if state.step > 0:
            save(state, False)  # what has been trained is not lost with an evaluation
        raise
    log.log(state.step, state.loader.position, state.seconds, values)
    state.owes_evaluation = False
    value = math.nan if settings.best_metric is None else values[settings.best_metric]
    if math.isnan(value) or (state.best is not None and value <= state.best):
        return False
    state.best = value
    return True


def _report_corrupt(state: TrainState, epoch: int, console: Console, epoch_ended: bool) -> None:
    """Names what any rank could not decode in the epoch; once it has ended, the next one starts with an empty list."""
    corrupt = [entry for entries in gather_objects(state.corrupt) for entry in entries]
    if corrupt:
        console.line(describe_corrupt(f"epoch {epoch}", corrupt))
    if epoch_ended:
        state.corrupt = []
