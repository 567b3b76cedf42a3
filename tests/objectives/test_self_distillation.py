"""Self-distillation in float64 against a plain version; crops are keyed; the centre is that of the whole batch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.views import WHOLE_IMAGE, StepKey
from mmlm.objectives.self_distillation import LOCAL_CROPS, SelfDistillation, crops

SIZES = ModelSizes(embedding_width=5, patch_width=4, grid=(2, 2), decoder_width=None, vocab_size=None)
START = StepKey()


def make_objective(**settings: float) -> SelfDistillation:
    torch.manual_seed(0)
    sizes = {"num_prototypes": 7, "hidden_width": 6, "bottleneck_width": 3}
    objective = SelfDistillation(num_local=2, **sizes, **settings)
    objective.connect(SIZES)
    return objective.double()


def make_output(images: int, seed: int = 1) -> ModelOutput:
    """Embeddings of crops (leaf) and, of a teacher, of whole images; nothing projected yet."""
    generator = torch.Generator().manual_seed(seed)
    both = F.normalize(torch.randn(3 * images, 5, generator=generator, dtype=torch.float64), dim=-1)
    teacher = ModelOutput(view_embedding={WHOLE_IMAGE: both[2 * images :]})
    return ModelOutput(view_embedding={LOCAL_CROPS: both[: 2 * images].clone().requires_grad_()}, teacher=teacher)


def loss_of(objective: SelfDistillation, output: ModelOutput, batch: Batch, count: int, teacher: SelfDistillation):
    """Of a micro-batch of a whole batch of ``count`` images."""
    output = replace(objective.project(output), teacher=teacher.project(output.teacher))
    return objective(output, batch, START, {"images": torch.tensor(float(count), dtype=torch.float64)})


def scores(objective: SelfDistillation, vector: Tensor) -> Tensor:
    """Of one embedding."""
    vector = objective.head.mlp(vector)
    return torch.stack([vector @ p / vector.norm() / p.norm() for p in objective.head.prototypes])


def test_equals_a_plain_version_with_gradients(make_batch):
    objective, teacher = make_objective(teacher_temperature=0.3, student_temperature=0.5), make_objective()
    with torch.no_grad():
        objective.center.copy_(torch.linspace(-0.2, 0.3, 7))
        for parameter in teacher.parameters():
            parameter += 0.1
    output, batch = make_output(3), make_batch((), 3)
    expected = 0
    for image in range(3):
        target = teacher.project(output.teacher).projected[WHOLE_IMAGE][image].detach()
        torch.testing.assert_close(target, scores(teacher, output.teacher.view_embedding[WHOLE_IMAGE][image]))
        target = ((target - objective.center) / 0.3).exp()
        target = target / target.sum()
        for crop in range(2):
            own = (scores(objective, output.view_embedding[LOCAL_CROPS][3 * crop + image]) / 0.5).exp()
            expected = expected - (target * (own / own.sum()).log()).sum() / 6
    with torch.no_grad():
        taught = teacher.project(output.teacher)
    loss = objective(
        replace(objective.project(output), teacher=taught), batch, START, {"images": torch.tensor(3.0).double()}
    )
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=1e-10)
    leaves = [output.view_embedding[LOCAL_CROPS], *objective.parameters()]
    theirs = torch.autograd.grad(expected, leaves)
    for one, other in zip(torch.autograd.grad(loss.total, leaves), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert 0 < loss.figures["entropy"].value < torch.tensor(7.0).log()


def test_the_centre_moves_once_a_step_by_the_mean_of_all_micro_batches(make_batch):
    objective, teacher = make_objective(center_momentum=0.75), make_objective()
    objective.center.fill_(0.5)
    objective.steps.fill_(10)
    outputs = [make_output(3), make_output(1, seed=2)]
    for output in outputs:
        before = objective.center.clone()
        loss_of(objective, output, make_batch((), len(output.teacher.view_embedding[WHOLE_IMAGE])), 4, teacher)
        assert torch.equal(objective.center, before)
    objective.finish()
    seen = torch.cat([teacher.head(output.teacher.view_embedding[WHOLE_IMAGE]) for output in outputs])
    torch.testing.assert_close(objective.center, 0.75 * 0.5 + 0.25 * seen.mean(dim=0))
    after = objective.center.clone()
    objective.finish()
    assert torch.equal(objective.center, after)
    assert objective.steps == 11


def test_the_first_centres_are_plain_means(make_batch):
    objective, teacher = make_objective(center_momentum=0.9), make_objective()
    means = []
    for seed in range(3):
        output = make_output(2, seed=seed)
        loss_of(objective, output, make_batch((), 2), 2, teacher)
        objective.finish()
        means.append(teacher.head(output.teacher.view_embedding[WHOLE_IMAGE]).mean(dim=0))
        torch.testing.assert_close(objective.center, torch.stack(means).mean(dim=0))


@pytest.mark.parametrize("spoilt", [False, True], ids=["no images", "scores that are no numbers"])
def test_the_centre_stays_a_number(make_batch, spoilt):
    objective, teacher = make_objective(), make_objective()
    output = make_output(1 if spoilt else 0)
    if spoilt:
        output.teacher.view_embedding[WHOLE_IMAGE].fill_(float("nan"))
    loss = loss_of(objective, output, make_batch((), 1 if spoilt else 0), 1, teacher)
    assert loss.total.isfinite() != torch.tensor(spoilt)
    objective.finish()
    assert torch.equal(objective.center, torch.zeros(7, dtype=torch.float64))


def test_looking_at_the_loss_does_not_move_the_centre(make_batch):
    objective, teacher = make_objective(), make_objective()
    with torch.no_grad():
        loss_of(objective, make_output(2), make_batch((), 2), 2, teacher)
    loss_of(objective.eval(), make_output(2), make_batch((), 2), 2, teacher)
    objective.finish()
    assert not objective.center.any()


# Crops


def pictures(batch: Batch) -> Batch:
    noise = torch.randint(0, 256, (len(batch.ids), 3, 12, 12), generator=torch.Generator().manual_seed(0))
    return replace(batch, images=noise.to(torch.uint8))


def test_crops_depend_on_seed_step_and_image_alone(make_batch):
    objective, batch = make_objective(), pictures(make_batch((), 5))
    whole = objective.draw(batch, START)[LOCAL_CROPS]
    assert (whole.shape, whole.dtype) == ((10, 3, 12, 12), torch.uint8)
    parts = [objective.draw(part, START)[LOCAL_CROPS].unflatten(0, (2, -1)) for part in batch.split(2)]
    assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), whole)
    torch.manual_seed(99)
    assert torch.equal(objective.draw(batch, START)[LOCAL_CROPS], whole)
    assert not torch.equal(whole[:5], whole[5:])
    for other in (StepKey(seed=1), StepKey(step=1)):
        assert not torch.equal(objective.draw(batch, other)[LOCAL_CROPS], whole)
    nothing = objective.draw(pictures(make_batch((), 0)), START)[LOCAL_CROPS]
    assert nothing.shape == (0, 3, 12, 12)


def test_a_crop_of_everything_is_the_image():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    draws = torch.rand(3, 4, dtype=torch.float64)
    draws[:, 1] = 0.5
    assert torch.equal(crops(images, draws, 1.0, 1.0), images)


def test_a_crop_shows_the_place_that_it_was_drawn_at():
    """A quarter of the area at the top right of an image whose red grows to the right and green to the bottom."""
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64, dtype=torch.uint8)])
    draws = torch.tensor([[0.0, 0.5, 1.0, 0.0]], dtype=torch.float64)
    red, green, blue = crops(image[None], draws, 0.25, 0.25)[0].int()
    assert (red.min(), red.max(), green.min(), green.max(), blue.max()) == (127, 252, 0, 125, 0)
    assert (red[:, 1:] >= red[:, :-1]).all()
    assert (green[1:] >= green[:-1]).all()


def test_crops_have_the_areas_and_shapes_that_were_asked_for():
    """Seen by how much of a ramp from 0 to 250 they cover, from left to right and from top to bottom."""
    ramp = torch.linspace(0, 250, 64).round().to(torch.uint8)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.expand(64, 64)])
    draws = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = crops(image.expand(50, -1, -1, -1), draws, 0.1, 0.4).float().flatten(2)
    width, height = ((found.amax(2) - found.amin(2)) / 250).unbind(1)[:2]
    assert (width * height).min() > 0.08
    assert (width * height).max() < 0.42
    assert (width / height).max() < 1.45
    assert (width / height).min() > 0.7


# What it asks for, and refuses


def test_what_it_asks_for():
    objective = make_objective()
    assert objective.views == {LOCAL_CROPS}
    assert objective.teacher_views == {WHOLE_IMAGE}
    assert objective.needs_teacher
    assert objective.needs_average
    with torch.device("meta"):
        on_meta = SelfDistillation()
        on_meta.connect(SIZES)
    assert {tensor.device.type for tensor in on_meta.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_local": 0}, r"^num_local: 0 must be at least 1$"),
        ({"num_prototypes": 0}, r"^num_prototypes: 0 must be at least 1$"),
        ({"min_area": 0.5}, r"^min_area: 0\.5 and max_area=0\.4 must be shares in order, above 0, at most 1$"),
        ({"max_area": 1.5}, r"^min_area: 0\.1 and max_area=1\.5 must be shares in order"),
        (
            {"teacher_temperature": 0.1},
            r"^teacher_temperature: 0\.1 must be above 0 and below student_temperature=0\.1",
        ),
        ({"center_momentum": 1.0}, r"^center_momentum: 1\.0 must lie in \[0, 1\)$"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        SelfDistillation(**settings)
    assert "\n" not in str(caught.value)
