"""Weighted sums: values, gradients, names, what is left out and what is refused; and the step that holds it all."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import CAPTION, EMBED, StepKey, View, ViewInputs
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.objective import Comparison, Objective
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.training.train_step import TrainStep


class Recorded(Objective):
    """``factor * sum(image_embedding) / count``, and a note of each call."""

    def __init__(self, factor: float, view: View, names: tuple[str, ...] = ("only",)) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.views, self.names, self.calls = frozenset({view}), names, 0

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        self.calls += 1
        total = self.factor * output.image_embedding.sum()
        terms = {name: Term(total, torch.tensor(4.0), 3.0) for name in self.names}
        return Loss(terms, {"figure": Term(total, torch.tensor(1.0))})


def output_of(value: float = 2.0) -> ModelOutput:
    return ModelOutput(image_embedding=torch.full((1, 1), value, requires_grad=True))


def test_total_is_the_sum_of_weights_times_values(make_batch, make_output, alone):
    batch = make_batch((0, 1, 1, 2), 3)
    output = make_output(batch)
    parts = {"contrastive": InfoNCE(), "captioning": Captioning()}
    loss = WeightedSum(parts, {"contrastive": 0.5, "captioning": 2.0})
    loss = alone(loss, output, batch)
    each = {name: alone(part, output, batch).total for name, part in parts.items()}
    expected = 0.5 * each["contrastive"] + 2.0 * each["captioning"]
    torch.testing.assert_close(loss.total, expected, check_dtype=False, rtol=1e-6, atol=1e-6)
    assert {name: term.weight for name, term in loss.terms.items()} == {"contrastive": 0.5, "captioning": 2.0}
    for name, term in loss.terms.items():
        torch.testing.assert_close(term.value, each[name])
    inputs = [
        output.image_embedding,
        output.text_embedding,
        output.hidden[CAPTION],
        output.head_weight,
        *parts["contrastive"].parameters(),
    ]
    theirs = torch.autograd.grad(expected, inputs)
    for one, other in zip(torch.autograd.grad(loss.total, inputs), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert set(loss.figures) == {"contrastive/accuracy", "contrastive/temperature", "captioning/accuracy"}


def test_weight_zero_is_neither_held_nor_run_nor_asked_a_view(alone):
    kept, left_out = Recorded(1.0, EMBED), Recorded(5.0, CAPTION)
    both = WeightedSum({"a": kept, "b": left_out}, {"a": 1.0, "b": 0.0})
    assert both.views == {EMBED}
    assert [name for name, _ in both.named_parameters()] == ["objectives.a.factor"]
    loss = alone(both, output_of(), None)
    assert list(loss.terms) == ["a"]
    assert (kept.calls, left_out.calls) == (1, 0)


def test_views_are_joined():
    parts = {"a": Recorded(1.0, EMBED), "b": Recorded(1.0, CAPTION), "c": Recorded(1.0, EMBED)}
    assert WeightedSum(parts, dict.fromkeys(parts, 1)).views == {EMBED, CAPTION}


def test_terms_carry_their_objective_s_name_and_weights_multiply(alone):
    parts = {"one": Recorded(1.0, EMBED), "two": Recorded(2.0, EMBED, ("x", "y"))}
    loss = WeightedSum(parts, {"one": 2.0, "two": 0.5})
    loss = alone(loss, output_of(), None)
    assert {name: term.weight for name, term in loss.terms.items()} == {"one": 6.0, "two/x": 1.5, "two/y": 1.5}
    assert loss.total.item() == pytest.approx(6 * 2 / 4 + 2 * 1.5 * 4 / 4)
    figures = {name: figure.value.item() for name, figure in loss.figures.items()}
    assert figures == {
        "one/figure": 2.0,
        "two/figure": 4.0,
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, r"^weights: b must be named in both objectives and weights$"),
        ({"a": 1.0, "b": 1.0, "bb": 1.0}, r"^weights: bb must be named in both"),
        ({"a": 1.0, "c": 1.0}, r"^weights: b, c must be named in both"),
        ({"a": 1.0, "b": -0.5}, r"^weights\.b: -0\.5 .* use 0 to leave the objective out$"),
        ({"a": 1.0, "b": float("nan")}, r"^weights\.b: nan .* use 0 to leave the objective out$"),
        ({"a": 1.0, "b": float("inf")}, r"^weights\.b: inf .* use 0 to leave the objective out$"),
        ({"a": 0.0, "b": 0}, r"^weights: every weight is 0, so there is nothing to train"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(weights, message):
    parts = {"a": Recorded(1.0, EMBED), "b": Recorded(1.0, EMBED)}
    with pytest.raises(UserError, match=message) as caught:
        WeightedSum(parts, weights)
    assert "\n" not in str(caught.value)


class Linear(nn.Module):
    """Stands in for the model: notes the views it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.asked: list[frozenset[View]] = []

    def draw(self, batch: Tensor, step_key: StepKey) -> ViewInputs:
        return {}

    def forward(self, batch: Tensor, views: frozenset[View], drawn: ViewInputs, probe: bool) -> ModelOutput:
        self.asked.append(views)
        return ModelOutput(image_embedding=(self.weight * batch)[None])


def test_train_step_holds_model_and_objective_and_passes_the_views():
    model, objective = Linear(), WeightedSum({"a": Recorded(1.0, EMBED)}, {"a": 2.0})
    step = TrainStep(model, objective)
    loss = step(torch.tensor([1.0, 2.0]), StepKey())
    assert model.asked == [objective.views]
    loss.total.backward()
    assert model.weight.grad.item() == pytest.approx(2 * 3 * 3 / 4)
    assert {name for name, _ in step.named_parameters()} == {"model.weight", "objective.objectives.a.factor"}


# A loss that does not depend on what it has read


class Cut(Comparison):
    """A comparison that forgets its embeddings, as on a rank without images."""

    views = frozenset({EMBED})

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        return Loss({"cut": Term(torch.zeros(()), torch.tensor(1.0))})


class Detached(Recorded):
    """An objective that cuts off the model."""

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        return Loss({"only": super().forward(output, batch, step_key, counts).terms["only"].detached()})


CUT = (
    "objective.objectives.mine: the loss of Cut has no gradient path to the embeddings, which Comparison in "
    "mmlm/objectives/objective.py asks for on every rank, an empty one too; compute it from image and text, also where "
    "it is 0"
)


@pytest.mark.parametrize("others", [{}, {"captioning": Captioning()}])
def test_a_comparison_without_a_gradient_path_is_named_in_one_pass_and_in_two(make_batch, make_output, alone, others):
    batch = make_batch((0, 1, 1, 2), 3)
    output = make_output(batch)
    objective = WeightedSum({"mine": Cut(), **others}, dict.fromkeys(["mine", *others], 1.0))
    with pytest.raises(UserError) as refused:
        alone(objective, output, batch)
    assert str(refused.value) == CUT
    with pytest.raises(UserError) as refused:
        objective.compare(output.image_embedding, output.text_embedding, (batch,), step=0)
    assert str(refused.value) == CUT
    with torch.no_grad():
        assert alone(objective, output, batch).terms.keys() >= {"mine"}, "nothing is asked of an evaluation"


def test_an_objective_that_detaches_is_named_and_a_frozen_model_is_not_its_fault(alone):
    objective = WeightedSum({"mine": Detached(1.0, EMBED)}, {"mine": 1.0})
    with pytest.raises(
        UserError, match=r"^objective\.objectives\.mine: the loss of Detached has no gradient path to wh"
    ):
        alone(objective, output_of(), None)
    frozen = ModelOutput(image_embedding=torch.ones(1, 1))
    assert not alone(objective, frozen, None).total.requires_grad
