"""Neither ranks nor micro-batches, order or padding change the maths: a whole training step of the tiny model.

The loss, the figures and the gradient of every parameter of one process on the whole batch are compared, in float64,
with those of micro-batches, of another order, of more padding, and of simulated ranks with unequal shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mmlm.check.batch import VOCABULARY, Shares, share_of, shuffled, whole_batch, with_more_padding
from mmlm.check.modules import expect_gradients, stir
from mmlm.check.ranks import Ranks, RanksFailed
from mmlm.check.report import CLOSE, EXACT, Broken, Check, expect, expect_finite, expect_same
from mmlm.core.batch import Batch
from mmlm.core.distributed import rank, sum_over_ranks
from mmlm.core.views import StepKey
from mmlm.experiment.build import build_model, build_objective, sizes_with_teacher
from mmlm.experiment.config import Config
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.training.gradients import backward
from mmlm.training.teacher import Teacher
from mmlm.training.train_step import TrainStep

Results = dict[str, Tensor]
"""Terms, figures and gradients of a step by name; see ``results``."""

WHOLE = 8
"""Images of the whole batch."""
MICRO_BATCHES = (2, 1)
"""Images a forward pass."""
SHARES: Mapping[str, Shares] = {
    "two ranks, one of them without images": (8, 0),
    "three ranks, one of them without captions": (6, 1, 1),
    "three ranks, one of them without anything": (5, 0, 3),
}
"""Images of each rank. The second text-only caption belongs to the last rank; the seventh image has no caption."""
RANKS_MICRO_BATCH = 2
"""Images a forward pass of a rank, so that ranks have unequal numbers of passes."""


def results(step: TrainStep, batch: Batch, micro_batch: int, key: StepKey, wrapper: nn.Module | None = None) -> Results:
    """Loss, terms, figures and gradients, summed over ranks; and the running means of objectives, the same on each."""
    loss = backward(wrapper or step, batch.split(micro_batch), key)
    found = {f"term {name}": sum_over_ranks(term.value) for name, term in loss.terms.items()}
    found |= {f"figure {name}": sum_over_ranks(figure.value) for name, figure in loss.figures.items()}
    found |= {"total": sum_over_ranks(loss.total)}
    found |= {f"running mean {name}": mean.clone() for name, mean in step.objective.named_buffers()}
    gradients = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    return found | (gradients if wrapper else _summed(gradients))


def _summed(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Over ranks, in one message."""
    flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    parts = flat.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def make_step(config: Config) -> TrainStep:
    """The train step of a config in float64 and training mode, no weight where it started.

    The teacher is the moving average of the model, where an objective needs one.
    """
    torch.manual_seed(config.seed)
    model = build_model(config, VOCABULARY, load_weights=False)
    objective = build_objective(config)
    objective.connect(sizes_with_teacher(config, model.sizes, None))
    step = TrainStep(model, objective).double()
    stir(step, means="objective.")
    if objective.needs_teacher:
        step.teacher = moving_average(step)
    return step.train()


def moving_average(step: TrainStep) -> Teacher:
    """A moving average that has been elsewhere."""
    average = ExponentialMovingAverage(step, 0.9)
    teacher = Teacher.averaging(step.model, step.objective, average)
    stir(teacher.model)
    assert teacher.objective is not None
    stir(teacher.objective, means="objective")
    return teacher


def step_key(config: Config) -> StepKey:
    """Seed and step: the last one of the run, at which every objective has begun."""
    return StepKey(seed=config.seed, step=config.train.steps - 1)


def rank_results(config: Config, training: bool, all_shares: Sequence[Shares]) -> list[Results | None]:
    """What a rank does: its share of each of ``all_shares``. Rank 0 returns the results, the others None."""
    found: list[Results | None] = []
    for shares in all_shares:
        step = make_step(config).train(training)
        share = share_of(whole_batch(config.data.image_size), rank(), shares)
        own = results(step, share, RANKS_MICRO_BATCH, step_key(config))
        found.append(own if rank() == 0 else None)
    return found


@dataclass(frozen=True)
class StepUnderTest:
    """The step of a tiny experiment, of which one part is tried."""

    config: Config
    slot: str
    """The slot that is tried, such as ``bridge``."""
    ranks: Ranks

    @cached_property
    def batch(self) -> Batch:
        """The whole batch."""
        return whole_batch(self.config.data.image_size)

    @cached_property
    def _in_training(self) -> tuple[Results, Results]:
        """The results of one process in training mode, for two states of torch's generator."""
        return self._run(self.batch, WHOLE, True, 0), self._run(self.batch, WHOLE, True, 1)

    @cached_property
    def training(self) -> bool:
        """Whether the step is tried in training mode: not if something drops out there, as no two passes are alike."""
        return not differing(*self._in_training)

    @cached_property
    def expected(self) -> Results:
        """The results of one process on the whole batch."""
        return self._in_training[0] if self.training else self.of(self.batch)

    @cached_property
    def with_other_draws(self) -> Results:
        """The same, while torch draws other numbers."""
        return self._in_training[1] if self.training else self.of(self.batch, seed=1)

    @cached_property
    def tolerance(self) -> float:
        """How exactly results can be compared: a language model may compute in float32 in between."""
        step = make_step(self.config).train(self.training)
        with torch.no_grad():
            for parameter in step.parameters():
                parameter.mul_(1 + 1e-13)
        other = results(step, self.batch, WHOLE, step_key(self.config))
        moved = max((other[name] - value).abs().max().item() for name, value in self.expected.items() if value.numel())
        return EXACT if moved < EXACT else CLOSE

    def of(self, batch: Batch, micro_batch: int = WHOLE, seed: int = 0) -> Results:
        """The results of one process on a batch, with torch's generator seeded by ``seed``."""
        return self._run(batch, micro_batch, self.training, seed)

    def _run(self, batch: Batch, micro_batch: int, training: bool, seed: int) -> Results:
        step = make_step(self.config).train(training)
        torch.manual_seed(seed)
        return results(step, batch, micro_batch, step_key(self.config))

    def part_of(self, name: str) -> str:
        """The objective that an entry of ``Results`` belongs to, with its class; empty for any other part."""
        kind, _, rest = name.partition(" ")
        path = (rest if kind in ("term", "figure") else name.removeprefix("objective.objectives.")).replace("/", ".")
        label = path.partition(".")[0]
        if self.slot != "objective" or label not in self.config.objective["objectives"]:
            return ""
        target = self.config.objective["objectives"][label]["_target_"]
        return f"objective.objectives.{label} {target.rpartition('.')[2]}"

    @property
    def only_objective(self) -> str:
        """The name of the objective, if there is one alone: of several, a failure does not say whose it is."""
        names = list(self.config.objective["objectives"])
        return self.part_of(f"term {names[0]}") if len(names) == 1 else ""

    def expect(self, found: Results, what: str, fix: str) -> None:
        """``Broken`` for the first entry that is not as expected."""
        for name in [*self.expected, *(name for name in found if name not in self.expected)]:
            if name not in found or name not in self.expected:
                where = "the whole batch has none" if name in found else f"{what} have none"
                raise Broken(f"{name}: {where}", fix, self.part_of(name))
            shown = name if " " in name or name == "total" else f"the gradient of {name}"
            expect_same(found[name], self.expected[name], f"{shown} of {what}", fix, self.tolerance, self.part_of(name))


def differing(one: Results, other: Results) -> list[str]:
    """The names of what is not equal bit for bit."""
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def random_by_key(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    found = differing(subject.expected, subject.with_other_draws)
    fix = "draw by StepKey (uniform, chosen) and the example's key in training, and nothing in eval mode"
    expect(
        not found,
        f"{found and found[0]} is another one when torch draws other numbers",
        fix,
        subject.part_of(found[0]) if found else "",
    )


def finite(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    for name, value in subject.expected.items():
        fix = "look for a division by a count that may be 0, or the logarithm of 0"
        expect_finite({name: value}, fix, subject.part_of(name))


def gradients(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    step = make_step(subject.config).train(subject.training)
    for name, parameter in step.named_parameters():
        parameter.grad = subject.expected.get(name)
    if subject.slot == "objective":
        for name, parameter in step.named_parameters():
            if name.startswith("objective."):
                expect_gradients({name: parameter}, subject.part_of(name))
        return
    part = getattr(step.model, subject.slot)
    expect_gradients({f"{subject.slot}.{name}": parameter for name, parameter in part.named_parameters()})


def micro_batches(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    for size in MICRO_BATCHES:
        fix = (
            "return Term(sum over the micro-batch's items, counts[...]), the count of the whole batch"
            if subject.slot == "objective"
            else "let no sum, norm or attention go over the batch (dimension 0)"
        )
        subject.expect(subject.of(subject.batch, size), f"micro-batches of {size}", fix)


def order(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    fix = "use no number of a row: what belongs together is told by image_index, ids, concepts and keys"
    subject.expect(subject.of(shuffled(subject.batch)), "another order", fix)


def padding(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    fix = "use lengths or target_mask: padding is no token, and counts as none"
    subject.expect(subject.of(with_more_padding(subject.batch)), "more padding", fix)


def simulated_ranks(subject: StepUnderTest) -> None:
    """See ``CHECKS``."""
    for size in sorted({len(shares) for shares in SHARES.values()}):
        chosen = {name: shares for name, shares in SHARES.items() if len(shares) == size}
        try:
            first = subject.ranks.run(size, rank_results, subject.config, subject.training, list(chosen.values()))[0]
        except RanksFailed as error:
            if error.of_communication:
                fix = "call the same collectives in the same order on every rank, also on one without items"
                told = f"the ranks do not call the same collectives: {error}"
                raise Broken(told, fix, subject.only_objective) from error
            fix = "let it work on a rank without images or captions, too"
            raise Broken(str(error), fix, subject.only_objective) from error
        fix = (
            "gather what is compared, take counts over all ranks, and let each rank's term be its own items' sum"
            if subject.slot == "objective"
            else "compute each image and caption by itself, whatever else is on the rank"
        )
        for name, found in zip(chosen, first, strict=True):
            subject.expect(found, name, fix)


CHECKS: tuple[Check[StepUnderTest], ...] = (
    Check("in a training step, random choices are keyed by seed, step and example", random_by_key),
    Check("in a training step, the loss, its figures and its gradients are finite", finite),
    Check("in a training step, gradients reach every parameter of it that trains", gradients),
    Check("another order of images and captions has the same loss and gradients", order),
    Check("more padding has the same loss and gradients", padding),
    Check("micro-batches of 2 and of 1 image have the loss and gradients of the whole batch", micro_batches),
    Check("2 and 3 ranks, one of them empty, have the loss and gradients of one process", simulated_ranks),
)
"""The rules of a part that takes part in a training step."""
