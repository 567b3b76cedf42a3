"""``fit()`` on a toy module: what is logged, evaluated and saved when, and how a run stops."""

import io
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from mmlm.errors import UserError
from mmlm.flow import Batch, Caption, Loss, Moment, Term
from mmlm.loop import FitSettings, Interrupted, NonFiniteLoss, TrainState, describe_corrupt, fit
from mmlm.metrics import Console
from mmlm.optim import Constant, Cosine, ExponentialMovingAverage
from mmlm.precision import Precision

CPU = torch.device("cpu")


def make_batch(number: int, corrupt: tuple[str, ...] = ()) -> Batch:
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
    )


@dataclass
class ToyLoader:
    """Batch i holds examples 2i and 2i + 1; an epoch has 6 examples."""

    position: int = 0
    corrupt: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        return self.position // 6

    def __iter__(self):
        while True:
            number = self.position // 2
            self.position += 2
            yield make_batch(number, self.corrupt.get(number, ()))


class Toy(nn.Module):
    """Loss (weight - 1)^2 * scale with dropout-like noise from torch's own generator, and a NaN where asked for."""

    def __init__(self, nan_at: int | None = None, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.nan_at, self.noise = nan_at, noise
        self.autocast: list[bool] = []
        self.training_modes: list[bool] = []
        self.diagnosed_steps: list[int] = []
        """Counted from 1."""

    def forward(self, batch: Batch) -> Loss:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        self.training_modes.append(self.training)
        number = int(batch.images[0, 0, 0, 0])
        error = (self.weight - 1 + self.noise * torch.randn(1)).square().sum()
        if number == self.nan_at:
            error = error * math.nan
        one = torch.tensor(1.0)
        return Loss({"error": Term(error, one)}, {"error/number": Term(torch.tensor(float(number)), one)})


def differentiate(toy: nn.Module, batches: Sequence[Batch], moment: Moment, diagnose: bool) -> Loss:
    (batch,) = batches
    if diagnose:
        toy.diagnosed_steps.append(moment.step + 1)
    loss = toy(batch)
    loss.total.backward()
    return loss


@dataclass
class Recorder:
    """Stands in for log, save and evaluate; ``events`` is the order in which they were called."""

    toy: Toy
    rows: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    states: dict[int, dict[str, object]] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    signal_at: int | None = None

    def log(self, step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        self.rows.append((step, examples, dict(values)))
        if step == self.signal_at and "train/loss" in values:
            signal.raise_signal(signal.SIGINT)

    def evaluate(self, step: int) -> Mapping[str, float]:
        assert not self.toy.training
        assert not torch.is_grad_enabled()
        self.events.append(f"evaluate {step}")
        return {"split/score": self.scores.get(step, float(step)), "weight": self.toy.weight.item()}

    def save(self, state: TrainState, is_best: bool) -> None:
        self.events.append(f"save {state.step}" + " best" * is_best)
        weights = {name: tensor.clone() for name, tensor in state.train_step.state_dict().items()}
        self.states[state.step] = state.state_dict() | {"weights": weights}

    def training_rows(self) -> list[tuple[int, dict[str, float]]]:
        return [(step, values) for step, _, values in self.rows if "train/loss" in values]


@dataclass
class Run:
    """A toy run; ``go`` trains it."""

    toy: Toy
    state: TrainState
    recorder: Recorder
    console: io.StringIO

    def go(self, schedule=None, **settings) -> "Run":
        defaults = {"steps": 6, "batch_size": 2, "log_every": 1, "eval_every": None, "save_every": None}
        fit_settings = FitSettings(**(defaults | {"precision": Precision.fp32, "clip_norm": None} | settings))
        recorder, console = self.recorder, Console(self.console)
        schedule = schedule or Constant(0)
        fit(self.state, fit_settings, schedule, differentiate, CPU, recorder, console, recorder.evaluate, recorder.save)
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


def test_trains_and_logs_every_step():
    run = make_run().go()
    assert run.toy.weight.item() == pytest.approx(expected_weights(6)[-1], rel=1e-5)
    steps = [step for step, _ in run.recorder.training_rows()]
    assert steps == [1, 2, 3, 4, 5, 6]
    weights = [3.0, *expected_weights(6)[:-1]]
    for (step, examples, values), weight in zip(run.recorder.rows, weights, strict=False):
        assert examples == 2 * step
        assert values["train/loss"] == values["train/error"] == pytest.approx((weight - 1) ** 2, rel=1e-4)
        assert values["train/gradient_norm"] == pytest.approx(abs(2 * (weight - 1)), rel=1e-4)
        assert values["train/error/number"] == step - 1
        assert values["train/lr"] == pytest.approx(0.1)
        assert values["train/examples_per_second"] > 0
    assert run.toy.training_modes == [True] * 6
    assert (run.state.step, run.state.loader.position) == (6, 12)


def test_a_row_is_the_mean_of_its_window_and_the_last_step_has_one():
    run = make_run().go(steps=5, log_every=2)
    rows = run.recorder.training_rows()
    assert [step for step, _ in rows] == [2, 4, 5]
    losses = [(weight - 1) ** 2 for weight in [3.0, *expected_weights(4)]]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert [values["train/loss"] for _, values in rows] == pytest.approx(means, rel=1e-4)


def test_what_happens_when():
    run = make_run().go(steps=7, eval_every=3, save_every=2)
    assert run.recorder.events == [
        "save 2",
        "evaluate 3",
        "save 4",
        "evaluate 6",
        "save 6",
        "evaluate 7",
        "save 7",
    ]
    assert [step for step, _, values in run.recorder.rows if "split/score" in values] == [3, 6, 7]


def test_null_intervals_mean_the_end_only():
    assert make_run().go(steps=3).recorder.events == ["evaluate 3", "save 3"]


def test_a_run_that_is_done_trains_no_further():
    run = make_run()
    run.state.step = 6
    run.go(steps=6)
    assert run.recorder.events == run.recorder.rows == run.toy.training_modes == []


def test_the_optimizer_follows_the_step_before_it_is_made_and_before_it_is_saved():
    run, asked = make_run(), []
    other = torch.optim.SGD([{"params": [run.toy.weight], "peak_lr": 0.0}], lr=0.0)

    def optimizer_for(step, optimizer):
        asked.append(step)
        return other if step >= 2 else optimizer

    run.state.optimizer_for = optimizer_for
    run.go(steps=4, save_every=2)
    assert asked == [1, 2, 3, 4]
    assert run.toy.weight.item() == pytest.approx(expected_weights(2)[-1], rel=1e-5)
    assert run.recorder.states[2]["optimizer"]["param_groups"][0]["momentum"] == 0, "that of the other"


def test_the_learning_rate_follows_the_schedule():
    schedule = Cosine(warmup_steps=2)
    rows = make_run(lr=0.01).go(schedule).recorder.training_rows()
    assert [values["train/lr"] for _, values in rows] == pytest.approx([0.01 * schedule(s, 6) for s in range(6)])


def test_gradients_are_clipped_and_their_norm_is_told_from_before():
    run = make_run().go(steps=1, clip_norm=0.5)
    assert run.recorder.rows[0][2]["train/gradient_norm"] == pytest.approx(4.0)
    assert run.toy.weight.item() == pytest.approx(3.0 - 0.1 * 0.5, rel=1e-4)


@pytest.mark.parametrize("precision", list(Precision))
def test_precision_reaches_the_forward_pass(precision):
    run = make_run().go(steps=2, precision=precision)
    assert run.toy.autocast == [precision is Precision.bf16] * 2
    assert not torch.is_autocast_enabled("cpu")


# Best and average


def test_the_best_checkpoint_is_the_one_with_the_largest_value():
    run = make_run()
    run.recorder.scores = {0: 0.1, 1: 0.0, 2: 0.5, 3: math.nan, 4: 0.5, 5: 0.7, 6: 0.2}
    run.go(eval_every=1, best_metric="split/score")
    assert [event for event in run.recorder.events if "save" in event] == [
        "save 0 best",
        "save 2 best",
        "save 5 best",
        "save 6",
    ]
    assert run.state.best == 0.7
    assert run.recorder.states[6]["best"] == 0.7


def test_a_resumed_run_remembers_its_best():
    run = make_run()
    run.state.step, run.state.best = 3, 0.6
    run.recorder.scores = {4: 0.5, 5: 0.61, 6: 0.2}
    run.go(eval_every=1, best_metric="split/score")
    assert run.recorder.events[0] == "evaluate 4"
    assert [event for event in run.recorder.events if "best" in event] == ["save 5 best"]


def test_a_best_metric_that_is_not_evaluated_is_refused_before_the_first_step():
    run = make_run()
    with pytest.raises(UserError, match=r"best_metric: 'split/scor' is not evaluated; there are: split/score, w"):
        run.go(best_metric="split/scor")
    assert run.toy.training_modes == []


def test_an_evaluation_that_fails_loses_no_training():
    run = make_run()

    def fails(step):
        raise UserError("one concept has 3 of 4 images")

    run.recorder.evaluate = fails
    with pytest.raises(UserError, match="one concept"):
        run.go(steps=4, eval_every=2)
    assert run.recorder.events == ["save 2"]
    assert run.recorder.states[2]["step"] == 2


def test_the_average_is_what_is_judged_and_training_goes_on_with_its_own_weights():
    plain, averaged = make_run().go(eval_every=2), make_run(ema=0.9).go(eval_every=2)
    assert torch.equal(plain.toy.weight, averaged.toy.weight)
    weights = expected_weights(6)
    average, expected = 3.0, {}
    for step, weight in enumerate(weights):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        expected[step + 1] = average
    seen = {step: values["weight"] for step, _, values in averaged.recorder.rows if "weight" in values}
    assert seen == pytest.approx({step: expected[step] for step in (2, 4, 6)}, rel=1e-5)
    assert averaged.state.weights()["weight"].item() == pytest.approx(expected[6], rel=1e-5)
    assert plain.state.weights()["weight"].item() == pytest.approx(weights[-1], rel=1e-5)


def test_own_weights_come_back_after_an_evaluation_that_fails():
    run = make_run(ema=0.9).go(steps=2)
    own = run.toy.weight.item()

    def judge_and_fail() -> None:
        with run.state.evaluating():
            assert run.toy.weight.item() != own
            assert not run.toy.training
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        judge_and_fail()
    assert run.toy.weight.item() == own
    assert run.toy.training


# Stopping


def states_equal(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = [(first[key], second[key]) for key in first if key != "seconds"]
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


def test_ctrl_c_finishes_the_step_saves_and_goes_on_exactly():
    torch.manual_seed(1)
    straight = make_run(noise=0.3).go()
    torch.manual_seed(1)
    stopped = make_run(noise=0.3)
    stopped.recorder.signal_at = 3
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped at step 3") as interrupted:
        stopped.go()
    assert interrupted.value.step == 3
    assert stopped.recorder.events == ["save 3"]
    assert signal.getsignal(signal.SIGINT) is before

    torch.manual_seed(99)
    saved = stopped.recorder.states[3]
    resumed = make_run(noise=0.3)
    resumed.toy.load_state_dict(saved["weights"])
    resumed.state.load_state_dict(saved)
    resumed.go()
    assert states_equal(resumed.recorder.states[6], straight.recorder.states[6])
    rows = [values | {"train/examples_per_second": 0} for _, values in stopped.recorder.training_rows()]
    rows += [values | {"train/examples_per_second": 0} for _, values in resumed.recorder.training_rows()]
    assert rows == [values | {"train/examples_per_second": 0} for _, values in straight.recorder.training_rows()]
    assert resumed.state.seconds > saved["seconds"]


def test_ctrl_c_at_the_last_step_is_an_ordinary_end():
    run = make_run()
    run.recorder.signal_at = 6
    run.go()
    assert run.recorder.events == ["evaluate 6", "save 6"]


def test_a_second_ctrl_c_stops_at_once():
    run = make_run()

    def twice(step: int, examples: int, seconds: float, values: Mapping[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    run.recorder.log = twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_stops_with_step_and_ids_after_saving_the_state_before():
    torch.manual_seed(0)
    healthy = make_run(noise=0.1).go(steps=2)
    torch.manual_seed(0)
    run = make_run(nan_at=2, noise=0.1)
    with pytest.raises(NonFiniteLoss) as stopped:
        run.go()
    message = str(stopped.value)
    assert message.startswith(
        "step 2: the loss is not finite (error nan, gradient norm nan) on the batch image4, image5;"
    )
    assert "\n" not in message
    assert run.recorder.events == ["save 2"]
    # Data position and random state too: a run that goes on from here meets the same batch again.
    assert states_equal(run.recorder.states[2], healthy.recorder.states[2])
    assert run.recorder.states[2]["position"] == 4
    assert run.toy.weight.grad is None


def test_an_infinite_gradient_counts_as_not_finite():
    run = make_run()
    run.toy.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLoss, match=r"step 0: .* \(error 4, gradient norm inf\) on the batch image0, image1"):
        run.go()


# Corrupt images


def test_corrupt_images_are_named_at_the_end_of_their_epoch():
    loader = ToyLoader(corrupt={1: ("b.png: is damaged",), 2: ("a.png: is empty",), 4: ("b.png: is damaged",)})
    text = make_run(loader).go(steps=8, log_every=1).console.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    assert lines == [
        "epoch 0: 2 images could not be decoded: a.png: is empty; b.png: is damaged",
        "epoch 1: 1 image could not be decoded: b.png: is damaged",
    ]


@pytest.mark.parametrize("end", ["last step", "ctrl-c", "not finite"])
def test_corrupt_images_of_an_unfinished_epoch_are_named_too(end):
    loader = ToyLoader(corrupt={0: ("b.png: is damaged",)})
    run = make_run(loader, nan_at=1 if end == "not finite" else None)
    if end == "last step":
        run.go(steps=1)
    elif end == "ctrl-c":
        run.recorder.signal_at = 1
        with pytest.raises(Interrupted):
            run.go()
    else:
        with pytest.raises(NonFiniteLoss):
            run.go()
    assert "epoch 0: 1 image could not be decoded: b.png: is damaged\n" in run.console.getvalue()


def test_ten_corrupt_images_are_named_and_the_rest_counted():
    text = describe_corrupt("val", [f"{number:02d}.png: is empty" for number in [*range(13), 4]])
    assert text.startswith("val: 13 images could not be decoded: 00.png: is empty; 01.png: is empty;")
    assert text.endswith("; 09.png: is empty; and 3 more")


# Diagnoses


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"diagnose_every": 3}, [1, 3, 6]),
        ({"diagnose_every": None}, []),
        ({}, [1]),
        ({"diagnose_every": 1}, [*range(1, 7)]),
    ],
)
def test_the_first_step_is_diagnosed_and_every_so_many(settings, steps):
    run = make_run().go(**settings)
    rows = [(step, values) for step, values in run.recorder.training_rows() if "train/update_ratio/weight" in values]
    assert [step for step, _ in rows] == run.toy.diagnosed_steps == steps
    weights = [3.0, *expected_weights(6)]
    for step, values in rows:
        ratio = abs(weights[step] - weights[step - 1]) / abs(weights[step - 1])
        assert values["train/update_ratio/weight"] == pytest.approx(ratio, rel=1e-4)
    assert run.toy.weight.item() == pytest.approx(expected_weights(6)[-1], rel=1e-5)


def test_diagnoses_are_not_among_what_the_console_shows():
    run = make_run().go(diagnose_every=1)
    assert "train/update_ratio/weight" in run.recorder.training_rows()[-1][1]
    assert "step 6/6" in run.console.getvalue()
    assert "update_ratio" not in run.console.getvalue()
