"""The sigmoid loss in float64 against loops over the definition and open_clip, with all gradients."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import StepKey
from mmlm.objectives.shared.candidates import Candidates
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.sigmoid import Sigmoid, sigmoid_sum

CASES = {
    "one caption an image": {"image_index": (2, 0, 3, 1), "num_images": 4},
    "several captions": {"image_index": (0, 0, 1, 2, 2, 2), "num_images": 3},
    "all at once": {
        "image_index": (3, 0, 0, TEXT_ONLY, 1, 4, 1),
        "num_images": 6,
        "image_concept": (5, 6, 7, 5, 8, 9),
        "caption_key": (1, 2, 3, 3, 4, 2, 5),
    },
}


def run(objective: Sigmoid, output: ModelOutput, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients: image, text, log scale, bias."""
    objective = objective.double()
    loss = objective(output, batch, StepKey(), {}).total
    return loss, list(torch.autograd.grad(loss, inputs_of(objective, output)))


def inputs_of(objective: Sigmoid, output: ModelOutput) -> list[Tensor]:
    return [output.image_embedding, output.text_embedding, objective.logit_scale, objective.logit_bias]


def slow_sigmoid(objective: Sigmoid, output: ModelOutput, batch: Batch) -> Tensor:
    """The class's docstring as a loop over pairs."""
    candidates = Candidates.of(Keys.of(batch), objective.positives)
    positive = candidates.positive(slice(None), slice(None))
    total = 0.0
    for row, b in enumerate(candidates.images.nonzero().flatten()):
        for column, c in enumerate(candidates.captions.nonzero().flatten()):
            product = (output.image_embedding[b] * output.text_embedding[c]).sum()
            logit = objective.logit_scale.exp() * product + objective.logit_bias
            total = total - torch.sigmoid(logit if positive[row, column] else -logit).log()
    return total / candidates.images.sum()


@pytest.mark.parametrize("positives", ["concept", "text", "own"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_loops_over_the_definition_with_all_gradients(make_batch, make_output, case, positives):
    batch = make_batch(**case)
    output = make_output(batch)
    objective = Sigmoid(temperature=0.2, bias=-2.0, positives=positives)
    loss, gradients = run(objective, output, batch)
    expected = slow_sigmoid(objective, output, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs_of(objective, output)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_equals_open_clip_s_loss(make_batch, make_output):
    batch = make_batch((0, 1, 2, 3, 4), 5)
    output = make_output(batch)
    objective = Sigmoid()
    loss, gradients = run(objective, output, batch)
    image, text, scale, bias = inputs = inputs_of(objective, output)
    expected = SigLipLoss()(image, text, scale.exp(), bias)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tile", [1, 3, 100])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 11), (9, 4)])
def test_tiles_of_any_size_are_the_whole(n, m, tile):
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(n + m, 3, generator=generator, dtype=torch.float64).split([n, m])
    scale, bias = torch.tensor([3.0, -2.0], dtype=torch.float64)
    given = [one.clone().requires_grad_() for one in (image, text, scale, bias)]
    positive = (torch.arange(n)[:, None] - torch.arange(m)[None, :]) % 4 == 0
    total, correct = sigmoid_sum(*given, lambda i, j: positive[i, j], tile)
    logits = given[2] * given[0] @ given[1].T + given[3]
    expected = -F.logsigmoid(torch.where(positive, logits, -logits)).sum()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    assert correct.tolist() == positive[torch.arange(n), logits.argmax(dim=1)].tolist()
    for ours, theirs in zip(
        torch.autograd.grad(2 * total, given), torch.autograd.grad(2 * expected, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tile", [2, 8])
def test_gradcheck(tile):
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    scale, bias = torch.tensor([1.5, -0.5], dtype=torch.float64)
    given = [one.clone().requires_grad_() for one in (image, text, scale, bias)]
    eye = torch.eye(4, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda *each: sigmoid_sum(*each, lambda i, j: eye[i, j], tile)[0], given)


def test_those_that_take_no_part_get_no_gradient_and_change_nothing(make_batch, make_output):
    batch = make_batch((0, TEXT_ONLY, 2), 3)
    output = make_output(batch)
    loss, (image, text, _, _) = run(Sigmoid(), output, batch)
    assert image[1].count_nonzero() == text[1].count_nonzero() == 0
    fewer = replace(
        output, image_embedding=output.image_embedding[[0, 2]], text_embedding=output.text_embedding[[0, 2]]
    )
    torch.testing.assert_close(run(Sigmoid(), fewer, make_batch((0, 1), 2))[0], loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        {"image_index": (TEXT_ONLY, TEXT_ONLY), "num_images": 0},
        {"image_index": (TEXT_ONLY, TEXT_ONLY), "num_images": 2},
        {"image_index": (), "num_images": 2},
    ],
    ids=["no image", "no caption of an image", "no caption"],
)
def test_a_batch_without_pairs_has_loss_zero_and_finite_gradients(make_batch, make_output, case, alone):
    batch = make_batch(**case)
    output = make_output(batch)
    loss, gradients = run(Sigmoid(), output, batch)
    assert loss.item() == 0
    assert all(g.count_nonzero() == 0 for g in gradients)
    assert alone(Sigmoid(), output, batch).figures["accuracy"].value.item() == 0


def test_figures(make_batch, alone):
    batch = make_batch((0, 1, 2, TEXT_ONLY), 4, caption_key=(1, 2, 1, 3))
    image = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0.6, 0.8], [0, 1, 0, 0]])
    figures = alone(Sigmoid(), ModelOutput(image, torch.eye(4)), batch).figures
    # Image 0 finds its text's twin, image 1 is wrong, image 2 must not find the text-only caption, image 3 has none.
    assert figures["accuracy"].value.item() == pytest.approx(2 / 3)
    assert figures["temperature"].value.item() == pytest.approx(0.1)
    assert figures["bias"].value.item() == pytest.approx(-10)
    own = alone(Sigmoid(positives="own"), ModelOutput(image, torch.eye(4)), batch).figures
    assert own["accuracy"].value.item() == pytest.approx(1 / 3)


def test_it_starts_where_siglip_does_and_trains_both():
    objective = Sigmoid()
    assert objective.logit_scale.item() == pytest.approx(math.log(10))
    assert objective.logit_bias.item() == -10
    assert [name for name, p in objective.named_parameters() if p.requires_grad] == ["logit_scale", "logit_bias"]
    fixed = Sigmoid(learned_temperature=False, learned_bias=False)
    assert not any(p.requires_grad for p in fixed.parameters())


def test_nothing_is_kept_where_no_gradient_is_wanted(make_batch, make_output, alone):
    batch = make_batch((0, 1, 2), 3)
    output = make_output(batch)
    wanted = alone(Sigmoid().double(), output, batch).total
    with torch.no_grad():
        loss = alone(Sigmoid().double(), output, batch).total
    assert not loss.requires_grad
    torch.testing.assert_close(loss, wanted.detach())


def test_autocast_rounds_neither_values_nor_gradients(make_batch, make_output):
    batch = make_batch((0, 1, 2, 3), 4)
    found = []
    for enabled in (True, False):
        objective = Sigmoid(temperature=0.02)
        output = make_output(batch)
        leaves = [output.image_embedding.detach().float(), output.text_embedding.detach().float()]
        output = ModelOutput(*(leaf.requires_grad_() for leaf in leaves))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = objective(output, batch, StepKey(), {}).total
            found.append([loss, *torch.autograd.grad(loss, inputs_of(objective, output))])
    for rough, exact in zip(*found, strict=True):
        assert torch.equal(rough, exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"^temperature: 0\.0 must be above 0 and finite$"),
        ({"temperature": math.inf}, r"^temperature: inf must be above 0 and finite$"),
        ({"bias": math.nan}, r"^bias: nan must be finite; SigLIP starts at -10$"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Sigmoid(**arguments)
