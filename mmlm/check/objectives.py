"""The rules of an objective's own methods: what it counts, and the terms that it returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmlm.check.batch import whole_batch
from mmlm.check.exactness import make_step, step_key
from mmlm.check.report import EXACT, Check, expect, raised
from mmlm.core.batch import Batch
from mmlm.core.figure import declared
from mmlm.core.loss import Loss, Term
from mmlm.core.views import View
from mmlm.experiment.config import Config
from mmlm.objectives.objective import Objective
from mmlm.training.train_step import TrainStep


@dataclass(frozen=True)
class ObjectivesUnderTest:
    """The objectives of a config, joined with the tiny model."""

    config: Config

    @property
    def batch(self) -> Batch:
        """The whole batch."""
        return whole_batch(self.config.data.image_size)

    def parts(self, step: TrainStep) -> Mapping[str, Objective]:
        """The objectives of a step by the name that a message gives each: its key with its class."""
        parts = step.objective.active(step_key(self.config).step)
        return {f"objective.objectives.{name} {type(part).__name__}": part for name, part in parts.items()}


def views(subject: ObjectivesUnderTest) -> None:
    """See ``CHECKS``."""
    for name, part in subject.parts(make_step(subject.config)).items():
        right = isinstance(part.views, frozenset) and all(isinstance(view, View) for view in part.views)
        expect(right, f"views is {part.views!r}", "make it a frozenset of views, such as frozenset({EMBED})", name)


def counts(subject: ObjectivesUnderTest) -> None:
    """See ``CHECKS``."""
    key, batch = step_key(subject.config), subject.batch
    for name, part in subject.parts(make_step(subject.config)).items():
        fix = "count in counts() from the batch's masks and indices alone: it is called before any forward pass"
        try:
            whole = part.counts(batch, key)
            parts = [part.counts(one, key) for one in batch.split(2)]
        except Exception as error:
            expect(False, f"counts() raised {raised(error)}", fix, name)
            raise
        for count, value in whole.items():
            expect(isinstance(value, Tensor), f"the count '{count}' is a {type(value).__name__}", fix, name)
            shape = f"the count '{count}' has the shape {list(value.shape)}"
            expect(value.ndim == 0, shape, "return one number, such as mask.sum()", name)
            added = sum(float(one[count]) for one in parts)
            told = f"the count '{count}' is {float(value):g} for the batch and {added:g} for its micro-batches together"
            expect(math.isclose(added, float(value), rel_tol=EXACT), told, fix, name)
    # Called again after a pass, it has to count the same.
    step = make_step(subject.config)
    before = {name: part.counts(batch, key) for name, part in subject.parts(step).items()}
    step(batch, key)
    for name, part in subject.parts(step).items():
        for count, value in part.counts(batch, key).items():
            first, second = float(before[name][count]), float(value)
            told = f"the count '{count}' is {first:g} before a forward pass and {second:g} after it"
            expect(first == second, told, "count in counts() from the batch alone", name)


def terms(subject: ObjectivesUnderTest) -> None:
    """See ``CHECKS``."""
    step, caught = make_step(subject.config), {}
    named = subject.parts(step)

    def catcher(name: str) -> Any:
        def catch(module: nn.Module, given: object, loss: Loss) -> None:
            caught[name] = loss

        return catch

    for name, part in named.items():
        part.register_forward_hook(catcher(name))
    step(subject.batch, step_key(subject.config))
    for name, loss in caught.items():
        expect(isinstance(loss, Loss), f"forward returns a {type(loss).__name__}", "return a Loss", name)
        expect(bool(loss.terms), "forward returns no term", "return Loss({'name': Term(sum, count)})", name)
        for kind, one in (("term", loss.terms), ("figure", loss.figures)):
            for label, term in one.items():
                _expect_term(f"the {kind} '{label}'", term, name)
                if declared(named[name].figures, label).share:
                    value = float(term.local_sum / term.global_count)
                    fix = "divide a number of items by the number of all of them, or declare it without share"
                    expect(value <= 1, f"the {kind} '{label}' is declared as a share and is {value:g}", fix, name)


def _expect_term(what: str, term: object, part: str) -> None:
    expect(isinstance(term, Term), f"{what} is a {type(term).__name__}", "make it Term(local_sum, global_count)", part)
    assert isinstance(term, Term)
    for field, value in (("local_sum", term.local_sum), ("global_count", term.global_count)):
        expect(isinstance(value, Tensor), f"{field} of {what} is a {type(value).__name__}", "make it a tensor", part)
        expect(value.ndim == 0, f"{field} of {what} has the shape {list(value.shape)}", "sum it up: float[]", part)
    fix = "count what cannot have a gradient: items, not probabilities"
    expect(not term.global_count.requires_grad, f"global_count of {what} has a gradient", fix, part)
    positive = bool(term.global_count > 0)
    told = f"global_count of {what} is {float(term.global_count):g}"
    expect(positive, told, "use counts[...], which is at least 1, or clamp(min=1)", part)


CHECKS: tuple[Check[ObjectivesUnderTest], ...] = (
    Check("views is a frozenset of views", views),
    Check("counts are numbers of the batch alone, and add up over micro-batches", counts),
    Check("terms and figures are a sum float[] with a count float[] above 0 that has no gradient", terms),
)
"""The rules of an objective that are not those of every part in a training step."""
