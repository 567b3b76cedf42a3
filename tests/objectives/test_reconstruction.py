"""Reconstruction of masked patches against a slow version of its formula, and what it sees."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput, ModelSizes, VisiblePatches
from mmlm.core.views import StepKey
from mmlm.objectives.reconstruction import MaskedReconstruction
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.training.gradients import backward
from mmlm.training.train_step import TrainStep
from tests.exactness.cells import SUMS, Sum, make_step, whole_batch
from tests.objectives.conftest import build_batch

GRID, PATCH, WIDTH = (2, 3), (4, 2), 5
SIZES = ModelSizes(
    embedding_width=6, patch_width=WIDTH, grid=GRID, decoder_width=None, vocab_size=None, patch_size=PATCH
)
STEP_KEY = StepKey(seed=1, step=2)


def make(masked_share: float = 0.5, normalise: bool = True) -> MaskedReconstruction:
    torch.manual_seed(0)
    objective = MaskedReconstruction(masked_share, width=8, depth=2, num_heads=2, normalise=normalise)
    objective.connect(SIZES)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return objective.double()


def make_batch(num_images: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 3, 8, 6), generator=generator, dtype=torch.uint8)
    images[:, :, :4, :2] = 200  # one patch of one colour
    return replace(build_batch([0] if num_images else [], num_images), images=images)


def output_for(objective: MaskedReconstruction, batch: Batch, step_key: StepKey = STEP_KEY) -> ModelOutput:
    """Tokens as an encoder may give them, a leaf with gradient."""
    kept = objective.draw(batch, step_key)[objective.view]
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(*kept.shape, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    return ModelOutput(patches={objective.view: VisiblePatches(tokens, kept)})


def slow_target(patch: Tensor, normalise: bool) -> Tensor:
    """uint8[3, 4, 2] -> float64[24], rows, then columns, then colours."""
    values = torch.stack([patch[c, y, x].double() / 255 for y in range(4) for x in range(2) for c in range(3)])
    if not normalise:
        return values
    mean = values.sum() / 24
    return (values - mean) / (((values - mean) ** 2).sum() / 24 + 1e-6).sqrt()


def slow_loss(objective: MaskedReconstruction, output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """The formula one image and one patch at a time; and the share of variance that is explained."""
    visible = output.patches[objective.view]
    errors, squares = [], []
    for b in range(len(batch.images)):
        states, kept = [], visible.kept[b].tolist()
        for n in range(6):
            token = objective.mask_token
            if n in kept:
                weight, bias = objective.embedding.weight, objective.embedding.bias
                token = weight @ visible.tokens[b, kept.index(n)] + bias
            states.append(token + objective.positions[n])
        x = torch.stack(states)[None]
        for block in objective.blocks:
            x = x + slow_attention(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        for n in set(range(6)) - set(kept):
            row, column = n // 3, n % 3
            patch = batch.images[b, :, row * 4 : row * 4 + 4, column * 2 : column * 2 + 2]
            target = slow_target(patch, objective.normalise)
            prediction = objective.head.weight @ objective.norm(x[0, n]) + objective.head.bias
            errors.append(((prediction - target) ** 2).sum() / 24)
            squares.append((target**2).sum() / 24)
    error, square = torch.stack(errors).sum(), torch.stack(squares).sum()
    return error / len(errors), 1 - error.detach() / square


def slow_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """Two heads of width 4, every patch looking at every other."""
    queries, keys, values = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        columns = slice(head * 4, head * 4 + 4)
        scores = queries[..., columns] @ keys[..., columns].transpose(-1, -2) / 4**0.5
        heads.append(scores.softmax(dim=-1) @ values[..., columns])
    return attention.proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("masked_share", [0.5, 0.7])
@pytest.mark.parametrize("normalise", [True, False])
def test_loss_and_gradients_are_those_of_the_formula(alone, masked_share, normalise):
    objective, batch = make(masked_share, normalise), make_batch()
    output = output_for(objective, batch)
    leaves = [output.patches[objective.view].tokens, *objective.parameters()]
    loss = alone(objective, output, batch, STEP_KEY)
    expected, explained = slow_loss(objective, output, batch)
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=1e-12)
    assert loss.terms["reconstruction"].global_count == 3 * round(6 * masked_share)
    found, wanted = torch.autograd.grad(loss.total, leaves), torch.autograd.grad(expected, leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
        assert other.count_nonzero()
    if normalise:
        torch.testing.assert_close(loss.figures["explained"].value, explained, rtol=1e-10, atol=1e-12)
    else:
        assert loss.figures == {}


def test_predicting_the_mean_explains_nothing(alone):
    objective, batch = make(), make_batch()
    nn.init.zeros_(objective.head.weight)
    nn.init.zeros_(objective.head.bias)
    loss = alone(objective, output_for(objective, batch), batch, STEP_KEY)
    assert loss.figures["explained"].value.abs() < 1e-12
    assert 0.6 < loss.total < 1  # less than 1: patches of one colour have nothing to explain


def test_normalised_targets_do_not_know_brightness_and_contrast():
    objective, batch = make(), make_batch()
    masked = torch.tensor([[1, 2, 5]] * 3)
    images = batch.images // 2
    darker = images // 1 + 40
    first, second = (objective.targets(one, masked, torch.float64) for one in (images, darker))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    twice = objective.targets(images * 2, masked, torch.float64)
    torch.testing.assert_close(first, twice, rtol=0, atol=1e-3)  # but for the 1e-6
    flat = objective.targets(batch.images, torch.zeros(3, 1, dtype=torch.int64), torch.float64)
    assert (flat.abs() < 1e-9).all()


def test_the_kept_patches_are_drawn_by_image_and_step():
    objective, batch = make(), make_batch(40)
    (view,) = objective.views
    kept = objective.draw(batch, STEP_KEY)[view]
    assert kept.shape == (40, 3)
    assert (kept.diff(dim=1) > 0).all()
    assert kept.unique().tolist() == list(range(6))
    assert kept.unique(dim=0).shape[0] > 10
    parts = [objective.draw(part, STEP_KEY)[view] for part in batch.split(7)]
    assert torch.equal(torch.cat(parts), kept)
    assert not torch.equal(objective.draw(batch, replace(STEP_KEY, step=3))[view], kept)
    assert not torch.equal(objective.draw(batch, replace(STEP_KEY, seed=3))[view], kept)


def test_equal_shares_see_the_same_patches_and_others_do_not_meet():
    assert make(0.5).views == make(0.5, normalise=False).views
    assert not make(0.5).views & make(0.7).views


def test_masked_pixels_reach_the_loss_as_targets_only(alone):
    """The whole way from the images: predictions do not move with what is to be predicted."""
    step, batch = make_step(SUMS["reconstruction"]), whole_batch()
    (objective,) = step.objective.objectives.values()
    drawn = objective.draw(batch, STEP_KEY)
    kept, masked = drawn[objective.view], torch.ones(8, 4, dtype=torch.bool)
    masked.scatter_(1, drawn[objective.view], value=False)
    pixels = masked.view(8, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(batch, images=torch.where(pixels, 255 - batch.images // 2, batch.images))
    outputs = [step.model(one, objective.views, drawn) for one in (batch, changed)]
    tokens = [output.patches[objective.view].tokens for output in outputs]
    assert torch.equal(*tokens)
    assert tokens[0].shape == (8, kept.shape[1], 16)
    assert alone(objective, outputs[0], batch, STEP_KEY).total != alone(objective, outputs[0], changed, STEP_KEY).total


def test_alone_it_does_not_run_the_pass_over_all_patches(monkeypatch):
    step, batch = make_step(SUMS["reconstruction"]), whole_batch()
    monkeypatch.setattr(step.model.encoder, "forward", None)
    output = step.model(batch, step.objective.views, step.objective.draw(batch, STEP_KEY))
    assert (output.image_tokens, output.memory, output.image_embedding) == (None, None, None)
    loss = backward(step, [batch], STEP_KEY)
    assert set(loss.terms) == {"reconstruction"}


def test_a_rank_without_images_takes_part():
    step = make_step(SUMS["coca with reconstruction"])
    batch = whole_batch()
    texts = batch._part(range(0), batch.image_index < 0)
    assert len(texts.images) == 0
    loss = backward(step, [texts], STEP_KEY)
    assert loss.terms["reconstruction"].local_sum == 0
    assert step.objective.objectives["reconstruction"].head.weight.grad.count_nonzero() == 0
    assert loss.total > 0
    alone = make_step(SUMS["reconstruction"])
    assert backward(alone, [texts], STEP_KEY).total == 0


def test_it_learns():
    """One image over and over: the decoder tells its masked patches from those that are left."""
    step = make_step(Sum({"r": lambda: MaskedReconstruction(0.5, 16, 1, 2)}, {"r": 1.0}), torch.float32)
    batch = whole_batch()._part(range(1), torch.zeros(13, dtype=torch.bool))
    optimizer = torch.optim.Adam(step.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = backward(step, [batch], STEP_KEY)
        optimizer.step()
    assert loss.figures["r/explained"].value > 0.9


def test_it_is_put_together_without_memory():
    with torch.device("meta"):
        objective = MaskedReconstruction()
        objective.connect(replace(SIZES, grid=(4, 4)))
    assert objective.head.weight.shape == (24, 96)
    assert objective.positions.is_meta


def test_under_autocast_the_loss_is_float32(alone):
    objective, batch = make().float(), make_batch()
    output = output_for(objective, batch)
    visible = output.patches[objective.view]
    some = {objective.view: replace(visible, tokens=visible.tokens.detach().bfloat16())}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = alone(objective, replace(output, patches=some), batch, STEP_KEY)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), slow_loss(make(), output, batch)[0], rtol=0.02, atol=0)
    loss.total.backward()


def test_it_is_left_out_at_weight_0():
    parts = {"a": MaskedReconstruction(), "b": MaskedReconstruction(0.5)}
    step = TrainStep(nn.Module(), WeightedSum(parts, {"a": 1.0, "b": 0.0}))
    assert step.objective.views == parts["a"].views


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masked_share": 0.0}, r"^masked_share: 0\.0 must lie between 0 and 1"),
        ({"masked_share": 1.0}, r"^masked_share: 1\.0 must lie between 0 and 1"),
        ({"masked_share": 0.05}, r"^masked_share: 0\.05 of 6 patches masks 0; choose"),
        ({"masked_share": 0.95}, r"^masked_share: 0\.95 of 6 patches masks 6; choose"),
        ({"width": 10}, r"^width: 10 must be a multiple of 4"),
        ({"width": 0}, r"^width: 0 must be a multiple of 4"),
        ({"num_heads": 5}, r"^num_heads: 5 does not divide the width 96"),
        ({"depth": 0}, r"^depth: 0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MaskedReconstruction(**settings).connect(SIZES)


def test_an_encoder_that_sees_all_or_nothing_is_refused():
    with pytest.raises(UserError, match=r"^encoder: masked patches need one that can see some of them only"):
        MaskedReconstruction().connect(replace(SIZES, patch_size=None))
