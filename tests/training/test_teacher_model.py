"""The teacher: no part of what trains, in eval mode, without gradients; an average follows the weights it averages."""

import torch

from mmlm.core.views import CAPTION, EMBED, NO_VIEW_INPUTS, WHOLE_IMAGE
from mmlm.objectives.self_distillation import LOCAL_CROPS, SelfDistillation
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.training.gradients import backward
from mmlm.training.teacher import Teacher
from mmlm.training.train_step import TrainStep
from tests.exactness.cells import STEP_KEY, SUMS, make_step, whole_batch

PROJECTION = "model.image_projection.weight"
TAUGHT = "coca with distillation"


def averaged() -> tuple[TrainStep, ExponentialMovingAverage]:
    """A step that learns from its own average."""
    step = make_step(SUMS[TAUGHT])
    average = ExponentialMovingAverage(step, 0.9)
    step.teacher = Teacher.averaging(step.model, step.objective, average)
    return step, average


def make_optimizer_step(step: TrainStep) -> None:
    backward(step, [whole_batch()], STEP_KEY)
    torch.optim.SGD(step.parameters(), lr=0.1).step()
    step.zero_grad()


def test_it_is_no_part_of_the_step():
    step = make_step(SUMS["embedding distillation"])
    names = {name.split(".")[0] for name in step.state_dict()}
    assert names == {"model", "objective"}
    own = {parameter.data_ptr() for parameter in step.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in step.teacher.model.parameters())
    assert all(module is not step.teacher.model for module in step.modules())


def test_another_run_s_model_never_changes_and_stays_in_eval_mode():
    step = make_step(SUMS["embedding distillation"])
    teacher = step.teacher.model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    step.train()
    make_optimizer_step(step)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_an_average_is_the_average_itself_after_every_step():
    step, average = averaged()
    for number in range(3):
        make_optimizer_step(step)
        average.update(step, number)
        theirs = {f"model.{name}": tensor for name, tensor in step.teacher.model.state_dict().items()}
        theirs |= {f"objective.{name}": tensor for name, tensor in step.teacher.objective.state_dict().items()}
        assert theirs.keys() == average.tensors.keys()
        for name, tensor in theirs.items():
            assert torch.equal(tensor, average.tensors[name]), name
        assert step.teacher.model.image_projection.weight.data_ptr() == average.tensors[PROJECTION].data_ptr()
        assert not torch.equal(theirs[PROJECTION], step.model.image_projection.weight)


def test_an_average_follows_one_that_is_loaded():
    step, average = averaged()
    average.load({name: torch.full_like(tensor, 0.25) for name, tensor in average.tensors.items()})
    assert step.teacher.model.image_projection.weight.eq(0.25).all()
    head = step.teacher.objective.objectives["self"].head
    assert head.prototypes.eq(0.25).all()


def test_it_makes_what_it_is_asked_for_without_gradient():
    step, _ = averaged()
    batch = whole_batch()
    drawn = {LOCAL_CROPS: torch.zeros(16, 3, 16, 16, dtype=torch.uint8)}
    with torch.enable_grad():
        output = step.teacher(batch, {EMBED, CAPTION, WHOLE_IMAGE}, drawn, 0)
    made = [output.image_embedding, output.text_embedding, output.hidden[CAPTION], output.view_embedding[WHOLE_IMAGE]]
    assert not any(tensor.requires_grad for tensor in (*made, output.projected[WHOLE_IMAGE]))
    assert output.projected.keys() == {WHOLE_IMAGE}
    assert output.projected[WHOLE_IMAGE].shape == (8, 5)
    torch.testing.assert_close(output.view_embedding[WHOLE_IMAGE], output.image_embedding)
    # The average starts as the weights themselves.
    torch.testing.assert_close(output.image_embedding, step.model(batch, {EMBED}, NO_VIEW_INPUTS).image_embedding)


def test_it_is_asked_only_while_an_objective_learns_from_it():
    step = make_step(SUMS["contrastive"])
    parts = {"contrastive": step.objective.objectives["contrastive"], "self": SelfDistillation()}
    objective = WeightedSum(parts, {"contrastive": 1.0, "self": lambda step: float(step >= 9)})
    objective.connect(step.model.sizes)
    late = TrainStep(step.model, objective.double())
    assert objective.needs_teacher
    assert objective.teacher_views_at(8) == frozenset()
    assert objective.teacher_views_at(9) == {WHOLE_IMAGE}
    assert late.teacher is None
    backward(late, whole_batch().split(3), STEP_KEY)  # of step 5: it would fail if it asked
