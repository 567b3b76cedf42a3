"""Neither ranks nor micro-batches change the maths: real gloo processes against one process on the joined batch.

For every sum of objectives in ``cells.py``: loss, figures and the gradient of every parameter of W ranks with k
micro-batches each, on unequal shares of one batch, equal those of one process that has all of it at once. In float64
to 1e-10 and in float32 to 1e-5. ``be_a_rank`` is what each rank does.
"""

import functools
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmlm.check import exactness
from mmlm.check.batch import shuffled
from mmlm.core.computing import computing
from mmlm.core.distributed import world_size
from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.training.gradients import backward
from mmlm.training.replicated import Replicated
from tests.exactness.cells import STEP_KEY, SUMS, make_step, share_of, whole_batch
from tests.ranks import run_ranks

MICRO_BATCHES = (8, 2, 1)
"""Images a forward pass: with 8 a rank has one micro-batch."""
UNDER_DDP = 2
"""Likewise: some ranks have more micro-batches than others."""
NO_CAPTIONS = ("model.decoder.multimodal", "model.decoder.norm")
NO_EMBEDDINGS = ("model.image_projection", "model.text_projection", "model.text_norm")
UNREACHED = {
    "contrastive": NO_CAPTIONS,
    "own positives": NO_CAPTIONS,
    "hardest hinge": NO_CAPTIONS,
    "sigmoid": NO_CAPTIONS,
    "one that has not begun": NO_CAPTIONS,
    **dict.fromkeys(("captioning", "cappa", "prefix LM", "masked LM", "text-only LM"), NO_EMBEDDINGS),
    "matching alone, hardest": NO_EMBEDDINGS,
    "masked prediction": ("model.bridge", "model.decoder", "model.image_projection", "model.text_"),
    "reconstruction": ("model.bridge", "model.decoder", "model.image_projection", "model.text_"),
    "embedding distillation": NO_CAPTIONS,
    "affinity distillation": NO_CAPTIONS,
    "caption distillation": NO_EMBEDDINGS,
    "self distillation": ("model.decoder", "model.text_projection", "model.text_norm"),
}
"""Parameters that a sum does not train at this step; any other sum trains all."""
TOLERANCES = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def micro_batches(dtype: torch.dtype, size: int) -> tuple[int, ...]:
    """Those of W ranks. Four ranks, one of them empty, show in float64 what can go wrong; the others show less."""
    return MICRO_BATCHES if dtype == torch.float64 and size == 4 else MICRO_BATCHES[1:2]


results = functools.partial(exactness.results, key=STEP_KEY)
"""Loss, figures and gradients of a step, as the kit compares them."""


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype, what: str) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, **TOLERANCES[dtype], check_dtype=False, msg=lambda m, n=name: f"{what}, {n}: {m}"
        )


@pytest.mark.parametrize("name", SUMS)
def test_every_parameter_that_takes_part_has_a_gradient(name):
    """Or equal gradients would say nothing; and what the objectives do not reach has none."""
    step = make_step(SUMS[name])
    found = results(step, whole_batch(), 8)
    assert found["total"] > 0
    gradients = {key: parameter.grad for key, parameter in step.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is not None and not gradient.count_nonzero()] == []
    without = {key for key, gradient in gradients.items() if gradient is None}
    assert without == {key for key in gradients if key.startswith(UNREACHED.get(name, ()))}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_micro_batches_and_order_change_nothing(name, dtype):
    expected = alone(name, dtype)
    for micro_batch in MICRO_BATCHES[1:]:
        found = results(make_step(SUMS[name], dtype), whole_batch(), micro_batch)
        assert_same(found, expected, dtype, f"micro-batches of {micro_batch}")
    assert_same(results(make_step(SUMS[name], dtype), shuffled(whole_batch()), 8), expected, dtype, "another order")


def test_two_passes_under_autocast():
    """Weights cast to bfloat16 in the pass without gradients are not taken over by the one with them."""
    found = []
    for micro_batch in (8, 2):
        step = make_step(SUMS["coca"], torch.float32)
        with computing(torch.device("cpu"), Precision.bf16):
            backward(step, whole_batch().split(micro_batch), STEP_KEY)
        found.append({name: parameter.grad for name, parameter in step.named_parameters()})
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).norm() < 0.03 * gradient.norm(), name


def test_patch_dropout_is_that_of_the_whole_batch():
    """In both passes, for the temperature and the captions alike; and it does drop patches."""
    sums, batch = SUMS["coca with reconstruction"], whole_batch()
    expected = results(make_step(sums, patch_dropout=0.5), batch, 8)
    assert expected["total"] != results(make_step(sums), batch, 8)["total"]
    for micro_batch in MICRO_BATCHES[1:]:
        found = results(make_step(sums, patch_dropout=0.5), batch, micro_batch)
        assert_same(found, expected, torch.float64, f"micro-batches of {micro_batch}")
    found = results(make_step(sums, patch_dropout=0.5), shuffled(batch), 8)
    assert_same(found, expected, torch.float64, "another order")


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Joins the group, computes every sum, and leaves what it found in ``folder``."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=size, timeout=timedelta(seconds=120)
    )
    batch, found = share_of(number, size), {}
    for name, parts in SUMS.items():
        for dtype in TOLERANCES:
            for micro_batch in micro_batches(dtype, size):
                # A rank may need fewer micro-batches than the others.
                found[name, str(dtype), micro_batch] = results(make_step(parts, dtype), batch, micro_batch)
        step = make_step(parts)
        found[name, str(torch.float64), "under DDP"] = results(step, batch, UNDER_DDP, wrapper=Replicated(step))
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


@functools.cache
def alone(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What one process finds on the whole batch."""
    return results(make_step(SUMS[name], dtype), whole_batch(), 8)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_and_micro_batches_together_change_nothing(tmp_path, size):
    found = run_ranks(tmp_path, size, "tests.exactness.test_exactness")
    for name in SUMS:
        for dtype in TOLERANCES:
            under_ddp = ["under DDP"] if dtype == torch.float64 else []
            for how in (*micro_batches(dtype, size), *under_ddp):
                for each in found:
                    assert_same(each[name, str(dtype), how], alone(name, dtype), dtype, f"{name}, {how}")


def test_dropout_is_the_same_in_both_passes():
    """With dropout two micro-batches are no whole batch, but each is embedded alike both times: its gradient is right.

    The gradient of a step with frozen random numbers is that of finite differences with the same ones.
    """
    step = make_step(SUMS["contrastive"])
    for layer in (*step.model.decoder.unimodal_layers, *step.model.decoder.multimodal_layers):
        layer.dropout.p = 0.3
    weight = step.model.text_projection.weight

    def total(shift: float) -> Tensor:
        torch.manual_seed(7)
        with torch.no_grad():
            weight[0, 0] += shift
        step.zero_grad()
        value = backward(step, whole_batch().split(3), STEP_KEY).total
        with torch.no_grad():
            weight[0, 0] -= shift
        return value

    slope = (total(1e-5) - total(-1e-5)) / 2e-5
    total(0.0)
    torch.testing.assert_close(weight.grad[0, 0], slope, rtol=1e-6, atol=1e-8)


def test_a_loss_that_nothing_trains_is_refused():
    step = make_step(SUMS["coca"]).requires_grad_(False)
    with pytest.raises(UserError, match=r"freeze\.frozen: nothing that trains has a part in the loss"):
        backward(step, [whole_batch()], STEP_KEY)


def test_one_process_is_its_own_world():
    assert world_size() == 1
