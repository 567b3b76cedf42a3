"""``fit()``: the training story. It is handed its parts and knows no model, objective or evaluator by name."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.data.loader import TrainLoader
from mmlm.diagnosis import WeightsBefore
from mmlm.errors import UserError
from mmlm.flow import Batch, Loss, Moment
from mmlm.metrics import Console, MetricLog
from mmlm.optim import ExponentialMovingAverage, Optimizer, Schedule, set_learning_rate
from mmlm.precision import Precision, computing
from mmlm.window import Window


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
    precision: Precision = Precision.bf16
    """``bf16`` (autocast, float32 parameters) or ``fp32``."""
    clip_norm: float | None = 1.0
    """Largest L2 norm of all gradients together; null turns clipping off."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights that is evaluated and exported, such as 0.999; null turns it off."""
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


Differentiate = Callable[[nn.Module, Sequence[Batch], Moment, bool], Loss]
"""Adds the gradients of a batch, given in micro-batches, to the parameters; returns the loss without gradient, with its
diagnosis where the last argument asks for it."""


class Interrupted(Exception):  # noqa: N818 - no error: what was asked for has been done
    """Training was asked to stop (Ctrl-C) and has saved its state at ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


class NonFiniteLoss(UserError):  # noqa: N818 - named after what happened
    """A loss or gradient was infinite or not a number; the state before that step has been saved."""


@dataclass
class TrainState:
    """Everything that changes while training and that a checkpoint has to hold."""

    train_step: nn.Module
    optimizer: Optimizer
    loader: TrainLoader
    ema: ExponentialMovingAverage | None = None
    seed: int = 0
    """Of what objectives draw (masks, negatives)."""
    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock seconds of training so far, over all sessions, evaluation included."""
    best: float | None = None
    """Best value of ``FitSettings.best_metric`` so far."""
    optimizer_for: Callable[[int, Optimizer], Optimizer] | None = None
    """Makes trainable in ``train_step`` what trains at a step, and returns the optimizer over it (the given one, if
    that is what it was over). None: the same parameters train from the first step to the last."""

    def go_to(self, step: int) -> None:
        """Makes ``step`` the next one: what trains, and the optimizer over it, are a function of it."""
        self.step = step
        if self.optimizer_for is not None:
            self.optimizer = self.optimizer_for(step, self.optimizer)

    def weights(self) -> Mapping[str, Tensor]:
        """The weights to evaluate and export: the moving average if there is one."""
        return self.ema.tensors if self.ema else self.train_step.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """All but the weights: optimizer, position, RNG, counters."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "position": self.loader.position,
            "rng": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` returned."""
        self.go_to(state["step"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.position = state["position"]
        torch.set_rng_state(state["rng"])
        self.seconds, self.best = state["seconds"], state["best"]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The module in eval mode with the weights to evaluate; training goes on with its own afterwards."""
        own = None
        if self.ema is not None:
            own = {name: tensor.clone() for name, tensor in self.train_step.state_dict().items()}
            self.train_step.load_state_dict(self.ema.tensors)
        self.train_step.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            if own is not None:
                self.train_step.load_state_dict(own)
            self.train_step.train()


def fit(
    state: TrainState,
    settings: FitSettings,
    schedule: Schedule,
    differentiate: Differentiate,
    device: torch.device,
    log: MetricLog,
    console: Console,
    evaluate: Callable[[int], Mapping[str, float]],
    save: Callable[[TrainState, bool], None],
) -> None:
    """Trains ``state`` in place up to ``settings.steps`` optimizer steps.

    Args:
        state: module, optimizer, loader and counters, fresh or resumed.
        settings: length, precision, intervals.
        schedule: learning rate as a share of its peak.
        differentiate: leaves the gradients of a batch's loss on the parameters; see ``mmlm/objectives/train_step.py``.
        device: where batches go.
        log: takes every row of metrics.
        console: shows progress.
        evaluate: called with the step, module in eval mode and holding the weights to judge; returns named values.
        save: called with the state and whether it is the best so far.

    Raises:
        Interrupted: after Ctrl-C, once the running step is done and saved.
        NonFiniteLoss: with the step and the batch's ids, after saving the state before that step.
        UserError: ``settings.best_metric`` is not among the values of ``evaluate``, before the first step.
    """
    batches = iter(state.loader)
    corrupt: list[str] = []
    window, begun = Window(), time.monotonic() - state.seconds
    state.train_step.train()
    if state.step == 0 and settings.best_metric is not None:
        # Refuses a name that is not evaluated before any training, and is what training has to beat.
        save(state, _evaluate(state, settings, log, evaluate))
    with _interrupt_flag() as interrupted, console.progress(settings.steps, state.step) as progress:
        while state.step < settings.steps:
            epoch, position, rng = state.loader.epoch, state.loader.position, torch.get_rng_state()
            batch = next(batches)
            corrupt += batch.corrupt
            lr = set_learning_rate(state.optimizer, schedule(state.step, settings.steps))
            diagnosed = _is_diagnosed(state.step, settings.diagnose_every)
            loss, norm = _forward_backward(state, batch, settings, differentiate, device, diagnosed)
            if not math.isfinite(loss.total.item() + norm.item()):
                state.optimizer.zero_grad(set_to_none=True)
                _report_corrupt(corrupt, epoch, console)
                state.loader.position = position
                torch.set_rng_state(rng)
                save(state, False)
                raise NonFiniteLoss(_describe(state.step, loss, norm, batch))
            before = WeightsBefore(state.train_step) if diagnosed else None
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            window.add(loss, norm)
            if before is not None:
                window.add_figures(before.update_ratios())
            if state.ema is not None:
                state.ema.update(state.train_step, state.step)
            state.go_to(state.step + 1)
            state.seconds = time.monotonic() - begun

            last = state.step == settings.steps
            if last or state.step % settings.log_every == 0:
                row = window.means()
                shown = row.main | {"lr": lr, "examples_per_second": _rate(window, settings.batch_size)}
                values = {f"train/{name}": value for name, value in (shown | row.more).items()}
                log.log(state.step, state.loader.position, state.seconds, values)
                progress.update(state.step, shown)
                window = Window()
            is_best = False
            if last or _due(state.step, settings.eval_every):
                try:
                    is_best = _evaluate(state, settings, log, evaluate)
                except Exception:
                    save(state, False)  # what has been trained is not lost with an evaluation
                    raise
                window.started = time.monotonic()
            stopping = interrupted()
            if state.loader.epoch != epoch or last or stopping:
                corrupt = _report_corrupt(corrupt, epoch, console)
            if is_best or last or stopping or _due(state.step, settings.save_every):
                save(state, is_best)
            if stopping and not last:
                raise Interrupted(state.step)


def _forward_backward(
    state: TrainState,
    batch: Batch,
    settings: FitSettings,
    differentiate: Differentiate,
    device: torch.device,
    diagnosed: bool,
) -> tuple[Loss, Tensor]:
    """Leaves gradients on the parameters; returns the loss and the gradients' norm before clipping."""
    batches = [batch] if settings.micro_batch_size is None else batch.split(settings.micro_batch_size)
    moment = Moment(state.seed, state.step)
    with computing(device, settings.precision):
        loss = differentiate(state.train_step, [micro_batch.to(device) for micro_batch in batches], moment, diagnosed)
    limit = math.inf if settings.clip_norm is None else settings.clip_norm
    return loss, nn.utils.clip_grad_norm_(state.train_step.parameters(), limit)


def _rate(window: Window, batch_size: int) -> float:
    return window.steps * batch_size / max(1e-9, time.monotonic() - window.started)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _is_diagnosed(step: int, every: int | None) -> bool:
    """Whether optimizer step ``step`` (from 0) is: the first, and each that makes the number of steps a multiple."""
    return every is not None and (step == 0 or (step + 1) % every == 0)


def _evaluate(
    state: TrainState, settings: FitSettings, log: MetricLog, evaluate: Callable[[int], Mapping[str, float]]
) -> bool:
    """Logs the evaluation's values; says whether they are the best so far."""
    with state.evaluating():
        values = evaluate(state.step)
    log.log(state.step, state.loader.position, state.seconds, values)
    if settings.best_metric is None:
        return False
    if settings.best_metric not in values:
        raise UserError(
            f"train.best_metric: '{settings.best_metric}' is not evaluated; there are: {', '.join(sorted(values))}"
        )
    value = values[settings.best_metric]
    if math.isnan(value) or (state.best is not None and value <= state.best):
        return False
    state.best = value
    return True


def _describe(step: int, loss: Loss, norm: Tensor, batch: Batch) -> str:
    terms = ", ".join(f"{name} {term.value.item():g}" for name, term in loss.terms.items())
    ids = ", ".join(batch.ids[:8]) + (f" and {len(batch.ids) - 8} more" if len(batch.ids) > 8 else "")
    return (
        f"step {step}: the loss is not finite ({terms}, gradient norm {norm.item():g}) on the batch {ids}; the state "
        "before this step is saved; lower optim.lr or look at these examples"
    )


def _report_corrupt(corrupt: list[str], epoch: int, console: Console) -> list[str]:
    """Names what could not be decoded in the epoch that ended; returns an empty list for the next one."""
    if corrupt:
        console.line(describe_corrupt(f"epoch {epoch}", corrupt))
    return []


def describe_corrupt(where: str, corrupt: Sequence[str]) -> str:
    """One line with the number and the first ten of the images (``id: reason``) that could not be decoded."""
    distinct = sorted(set(corrupt))
    count = "1 image" if len(distinct) == 1 else f"{len(distinct)} images"
    more = f"; and {len(distinct) - 10} more" if len(distinct) > 10 else ""
    return f"{where}: {count} could not be decoded: {'; '.join(distinct[:10])}{more}"


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag that is read between steps; a second one stops at once."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
