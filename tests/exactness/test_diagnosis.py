"""Diagnoses and rows of metrics are those of the whole batch, exactly: over micro-batches and over real gloo ranks.

``be_a_rank`` is what each rank does.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.training.gradients import backward
from mmlm.training.replicated import Replicated
from mmlm.training.train_step import TrainStep
from mmlm.training.window import Window
from tests.exactness.cells import PIXELS, STEP_KEY, SUMS, WIDTH, Sum, make_step, share_of, whole_batch
from tests.ranks import run_ranks

COCA = SUMS["coca"]
OTHER_PASSES = ("reconstruction", "masked prediction", "self distillation")
WITH_IMAGES = [name for name in SUMS if name not in OTHER_PASSES]
"""Sums that look at whole images: of the others there is nothing to tell."""
MICRO_BATCHES = (8, 2, 1)
CLOSE = {"rel": 1e-9, "abs": 1e-12}


def diagnosed(step: TrainStep, batch: Batch, micro_batch: int = 8, wrapper: torch.nn.Module | None = None) -> dict:
    """The figures of a diagnosed step over all ranks."""
    return backward(wrapper or step, batch.split(micro_batch), STEP_KEY, diagnose=True).diagnosis.over_ranks().values()


def row(step: TrainStep, batch: Batch, micro_batch: int = 8) -> dict[str, float]:
    """A row of metrics after one step, over all ranks; the gradient norm is that of this rank."""
    window = Window()
    window.add(backward(step, batch.split(micro_batch), STEP_KEY, diagnose=True), torch.tensor(2.0))
    made = window.means()
    return {**made.shown, **made.hidden}


def by_hand(step: TrainStep, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients of each weighted objective at the image tokens, and the embeddings, of a whole batch in one process."""
    tokens: list[Tensor] = []
    handle = step.model.encoder.register_forward_hook(lambda module, given, made: tokens.append(made.tokens))
    output = step.model(batch, step.objective.views)
    handle.remove()
    loss = step.objective(output, batch, STEP_KEY, step.objective.count((batch,), STEP_KEY))
    gradients = {
        name: torch.autograd.grad(term.weight * term.value, tokens, retain_graph=True)[0].flatten()
        for name, term in loss.terms.items()
    }
    return gradients, output.image_embedding.detach(), output.text_embedding.detach()


def test_figures_of_a_batch_against_plain_ones():
    step, batch = make_step(COCA), whole_batch()
    gradients, image, text = by_hand(step, batch)
    first, second = gradients["contrastive"], gradients["captioning"]
    expected = {
        "gradient_at_bridge/contrastive": first.norm().item(),
        "gradient_at_bridge/captioning": second.norm().item(),
        "gradient_cosine/contrastive-captioning": torch.cosine_similarity(first, second, dim=0).item(),
        "modality_gap": (image.mean(0) - text.mean(0)).norm().item(),
    }
    for name, embeddings in (("image", image), ("text", text)):
        values = np.linalg.svd(embeddings.numpy(), compute_uv=False)
        shares = values / values.sum()
        expected[f"effective_rank/{name}"] = math.exp(-(shares * np.log(shares)).sum())
    assert diagnosed(step, batch) == pytest.approx(expected, **CLOSE)
    assert expected["gradient_at_bridge/captioning"] > 0.001


def test_the_gradient_of_their_sum_follows_from_norms_and_cosine():
    step, batch = make_step(COCA), whole_batch()
    found = diagnosed(step, batch)
    a, b = found["gradient_at_bridge/contrastive"], found["gradient_at_bridge/captioning"]
    both = a * a + b * b + 2 * a * b * found["gradient_cosine/contrastive-captioning"]
    gradients, *_ = by_hand(step, batch)
    assert math.sqrt(both) == pytest.approx(sum(gradients.values()).norm().item(), **CLOSE)


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_micro_batches_change_nothing(name):
    expected = diagnosed(make_step(SUMS[name]), whole_batch())
    assert any(key.startswith("gradient_at_bridge/") for key in expected)
    for micro_batch in MICRO_BATCHES[1:]:
        assert diagnosed(make_step(SUMS[name]), whole_batch(), micro_batch) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("name", SUMS)
def test_a_diagnosis_leaves_loss_and_gradients_bit_equal(name):
    plain, diagnosing = make_step(SUMS[name]), make_step(SUMS[name])
    expected = backward(plain, [whole_batch()], STEP_KEY)
    found = backward(diagnosing, [whole_batch()], STEP_KEY, diagnose=True)
    assert torch.equal(found.total, expected.total)
    assert (expected.diagnosis, found.diagnosis is None) == (None, name not in WITH_IMAGES)
    for (key, first), second in zip(plain.named_parameters(), diagnosing.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None), key
        assert first.grad is None or torch.equal(first.grad, second.grad), key


def frozen_encoder() -> TrainStep:
    step = make_step(COCA)
    step.model.encoder.requires_grad_(False)
    return step


def test_a_frozen_encoder_hides_nothing():
    step = frozen_encoder()
    assert diagnosed(step, whole_batch()) == pytest.approx(diagnosed(make_step(COCA), whole_batch()), **CLOSE)
    assert all(parameter.grad is None for parameter in step.model.encoder.parameters())


def test_what_is_looked_at_does_not_pass_for_something_that_trains():
    step = make_step(SUMS["captioning"]).requires_grad_(False)
    with pytest.raises(UserError, match=r"freeze\.frozen: nothing that trains has a part in the loss"):
        backward(step, [whole_batch()], STEP_KEY, diagnose=True)


def pooling_encoder(frozen: bool) -> TrainStep:
    """The encoder pools its tokens itself: images are embedded past the bridge."""
    step = make_step(COCA)
    torch.manual_seed(2)
    encoder = TimmVit(PIXELS, patch_size=8, width=WIDTH, depth=1, num_heads=2, class_token=False, pool="mean").double()
    step.model.encoder, step.model.bridge.forward = encoder, _without_pooling(step.model.bridge)
    if frozen:
        encoder.requires_grad_(False)
    return step


def _without_pooling(bridge: torch.nn.Module):
    whole = type(bridge).forward
    return lambda patches: replace(whole(bridge, patches), pooled=None)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_path_through_an_encoder_that_pools_counts_once(frozen):
    """The gradient stands at the tokens for the decoder and at the pooled vector for the embedding: they share none."""
    found = diagnosed(pooling_encoder(frozen), whole_batch())
    assert found["gradient_cosine/contrastive-captioning"] == pytest.approx(0, abs=1e-15)
    gradients, *_ = by_hand(pooling_encoder(False), whole_batch())
    assert found["gradient_at_bridge/captioning"] == pytest.approx(gradients["captioning"].norm().item(), **CLOSE)
    # The mean of N tokens: at the tokens its gradient is shared out evenly, so its norm is smaller by sqrt(N).
    at_tokens = gradients["contrastive"].norm().item()
    assert found["gradient_at_bridge/contrastive"] == pytest.approx(at_tokens * math.sqrt(4), **CLOSE)


def test_objectives_that_compare_nothing_have_no_gap_and_no_cosine():
    assert list(diagnosed(make_step(SUMS["captioning"]), whole_batch())) == ["gradient_at_bridge/captioning"]


def test_an_objective_has_one_gradient_whatever_its_terms():
    class Halves(Captioning):
        def forward(self, output, batch, step_key, counts):
            loss = super().forward(output, batch, step_key, counts)
            half = replace(loss.terms["captioning"], local_sum=loss.terms["captioning"].local_sum / 2)
            return replace(loss, terms={"one": half, "two": half})

    halves = Sum({"contrastive": lambda: InfoNCE(0.3), "captioning": Halves}, COCA.weights)
    expected = diagnosed(make_step(COCA), whole_batch())
    assert diagnosed(make_step(halves), whole_batch()) == pytest.approx(expected, **CLOSE)


# Ranks


def cases(batch: Batch) -> Iterator[tuple[str, dict[str, float]]]:
    """What every rank computes, and one process on the joined batch."""
    for micro_batch in MICRO_BATCHES:
        yield f"diagnosis, micro-batches of {micro_batch}", diagnosed(make_step(COCA), batch, micro_batch)
        yield f"row, micro-batches of {micro_batch}", row(make_step(COCA), batch, micro_batch)
    for name in WITH_IMAGES:
        yield name, diagnosed(make_step(SUMS[name]), batch)
        yield f"{name}, micro-batches of 2", diagnosed(make_step(SUMS[name]), batch, 2)
    yield "frozen encoder", diagnosed(frozen_encoder(), batch)
    yield "pooling encoder", diagnosed(pooling_encoder(False), batch)


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Joins the group, computes every case, and leaves what it found in ``folder``."""
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=120), size, number)
    batch = share_of(number, size)
    found = dict(cases(batch))
    step = make_step(COCA)
    wrapper = Replicated(step)
    found["DDP"] = diagnosed(step, batch, 8, wrapper)
    gradients = [parameter.grad for parameter in step.parameters()]
    found["DDP gradient norm"] = {"norm": torch.stack([g.norm() for g in gradients]).norm().item()}
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.thorough
@pytest.mark.slow
def test_ranks_change_nothing(tmp_path):
    """Two ranks, each with all or a share of the weights, are in ``test_shared.py``."""
    expected = dict(cases(whole_batch()))
    expected["DDP"] = expected["diagnosis, micro-batches of 8"]
    step = make_step(COCA)
    backward(step, [whole_batch()], STEP_KEY)
    expected["DDP gradient norm"] = {"norm": torch.stack([p.grad.norm() for p in step.parameters()]).norm().item()}
    for found in run_ranks(tmp_path, 4, "tests.exactness.test_diagnosis"):
        assert found.keys() == expected.keys()
        for case, values in expected.items():
            assert found[case] == pytest.approx(values, **CLOSE), case
