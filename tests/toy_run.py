"""A toy run for ``fit()``: one weight, batches that are numbers, and a recorder of what happened when."""

import copy
import io
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch, Caption
from mmlm.core.loss import Loss, Term
from mmlm.core.precision import Precision
from mmlm.core.stop import stop_request
from mmlm.core.views import StepKey
from mmlm.data.unreadable import BadLimits
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.optim.schedules import Constant
from mmlm.record.console import Console
from mmlm.training.loop import FitParts, Watch, fit
from mmlm.training.replicated import unwrapped
from mmlm.training.reporter import OF_THE_CLOCK, Reporter
from mmlm.training.settings import FitSettings
from mmlm.training.train_state import TrainState

CPU = torch.device("cpu")


def make_batch(number: int, corrupt: tuple[str, ...] = (), corrupt_at: tuple[int, ...] = ()) -> Batch:
    """A batch of two images whose pixels all are ``number``."""
    keys = torch.tensor([2 * number, 2 * number + 1])
    return Batch(
        images=torch.full((2, 3, 2, 2), number % 256, dtype=torch.uint8),
        tokens=torch.tensor([[2, 5, 1], [2, 6, 1]]),
        lengths=torch.tensor([3, 3]),
        image_index=torch.tensor([0, 1]),
        image_concept=keys,
        caption_concept=keys,
        caption_key=keys,
        ids=(f"image{2 * number}", f"image{2 * number + 1}"),
        captions=(Caption("a"), Caption("b")),
        corrupt=corrupt,
        corrupt_at=corrupt_at,
    )


@dataclass
class ToyLoader:
    """Batch i holds examples 2i and 2i + 1; an epoch has 6 examples."""

    position: int = 0
    corrupt: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    corrupt_at: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def epoch_at(self, position: int) -> int:
        return position // 6

    def __iter__(self):
        while True:
            number = self.position // 2
            self.position += 2
            batch = make_batch(number, self.corrupt.get(number, ()), self.corrupt_at.get(number, ()))
            yield replace(batch, position=self.position, epoch=self.epoch_at(2 * number))


class Toy(nn.Module):
    """Loss (weight - 1)^2 with noise from torch's own generator; NaN, spikes or a signal at the batches asked for."""

    def __init__(self, nan_at: Sequence[int] = (), noise: float = 0.0, spikes_at: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.register_buffer("seen", torch.zeros(()))
        self.nan_at, self.noise, self.spikes_at = nan_at, noise, spikes_at
        self.signal_at: int | None = None
        """The batch in which ``signal`` comes."""
        self.signal = signal.SIGTERM
        self.numbers: list[int] = []
        self.draws: list[float] = []
        self.autocast: list[bool] = []
        self.training_modes: list[bool] = []
        self.diagnosed_steps: list[int] = []
        """Counted from 1."""

    def forward(self, batch: Batch) -> Loss:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        self.training_modes.append(self.training)
        number = int(batch.images[0, 0, 0, 0])
        drawn = torch.randn(1)
        self.numbers.append(number)
        self.draws.append(drawn.item())
        if number == self.signal_at:
            self.signal_at = None
            signal.raise_signal(self.signal)
        error = (self.weight - 1 + self.noise * drawn).square().sum()
        if number in self.nan_at:
            error = error * math.nan
        if number in self.spikes_at:
            error = error * 100
        self.seen.add_(error.detach())
        one = torch.tensor(1.0)
        return Loss({"error": Term(error, one)}, {"error/number": Term(torch.tensor(float(number)), one)})


def differentiate(
    train_step: nn.Module,
    batches: Sequence[Batch],
    step_key: StepKey,
    diagnose: bool = False,
    scale: Tensor | None = None,
) -> Loss:
    (batch,) = batches
    if diagnose:
        unwrapped(train_step).diagnosed_steps.append(step_key.step + 1)
    loss = train_step(batch)
    (loss.total if scale is None else loss.total * scale).backward()
    return loss


def restore(state: TrainState, saved: Mapping[str, object]) -> None:
    state.train_step.load_state_dict(saved["weights"])
    state.load_state_dict(copy.deepcopy(saved))


@dataclass
class Recorder:
    """Stands in for log, save and evaluate; ``events`` is the order in which they were called."""

    toy: Toy
    rows: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    states: dict[int, dict[str, object]] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        self.rows.append((step, examples, dict(values)))

    def evaluate(self, step: int) -> Mapping[str, float]:
        assert not self.toy.training
        assert not torch.is_grad_enabled()
        self.events.append(f"evaluate {step}")
        return {"split/score": self.scores.get(step, float(step)), "weight": self.toy.weight.item()}

    def save(self, state: TrainState, is_best: bool) -> None:
        self.events.append(f"save {state.step}" + " best" * is_best)
        weights = {name: tensor.clone() for name, tensor in self.toy.state_dict().items()}
        self.states[state.step] = copy.deepcopy(state.state_dict()) | {"weights": weights}

    def resume_from(self, step: int | None) -> int:
        self.events.append(f"rows up to {step}")
        before, self.rows = self.rows, [row for row in self.rows if step is not None and row[0] <= step]
        return len(before) - len(self.rows)

    def restore(self, state: TrainState, step: int) -> None:
        self.events.append(f"restore {step}")
        restore(state, self.states[step])

    def training_rows(self) -> list[tuple[int, dict[str, float]]]:
        return [(step, values) for step, _, values in self.rows if "train/loss" in values]


@dataclass
class Run:
    """A toy run; ``go`` trains it."""

    toy: Toy
    state: TrainState
    recorder: Recorder
    console: io.StringIO

    def go(self, schedule=None, bad_limits: BadLimits | None = None, **settings) -> "Run":
        defaults = {"steps": 6, "batch_size": 2, "log_every": 1, "eval_every": None, "save_every": None}
        fit_settings = FitSettings(**(defaults | {"precision": Precision.fp32, "clip_norm": None} | settings))
        recorder, console = self.recorder, Console(self.console)
        parts = FitParts(schedule or Constant(0), differentiate, CPU, recorder.evaluate, recorder, bad_limits)
        with stop_request() as request:
            fit(self.state, fit_settings, parts, Reporter(recorder, console), Watch(request))
        return self


def make_run(loader: ToyLoader | None = None, ema: float | None = None, lr: float = 0.1, **toy_settings) -> Run:
    toy = Toy(**toy_settings)
    optimizer = torch.optim.SGD([{"params": [toy.weight], "peak_lr": lr}], lr=lr, momentum=0.9)
    average = None if ema is None else ExponentialMovingAverage(toy, ema)
    return Run(toy, TrainState(toy, optimizer, loader or ToyLoader(), average), Recorder(toy), io.StringIO())


def expected_weights(steps: int, lr: float = 0.1) -> list[float]:
    """SGD with momentum on (w - 1)^2, by hand."""
    weight, velocity, found = 3.0, 0.0, []
    for _ in range(steps):
        velocity = 0.9 * velocity + 2 * (weight - 1)
        weight -= lr * velocity
        found.append(weight)
    return found


def states_equal(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = [(first[key], second[key]) for key in first if key not in ("seconds", "waited")]
    return all(
        states_equal(a, b)
        if isinstance(a, dict)
        else torch.equal(a, b)
        if isinstance(a, Tensor)
        else len(a) == len(b) and all(states_equal({"": x}, {"": y}) for x, y in zip(a, b, strict=True))
        if isinstance(a, list)
        else a == b
        for a, b in pairs
    )


def timeless(rows: Sequence[tuple[int, int, Mapping[str, float]]]) -> list[tuple[int, int, dict[str, float]]]:
    """Rows of metrics without what the clock says."""
    timed = {f"train/{name}" for name in OF_THE_CLOCK}
    return [(s, n, {k: v for k, v in values.items() if k not in timed}) for s, n, values in rows]
