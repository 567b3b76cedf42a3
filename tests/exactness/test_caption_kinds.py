"""Captions that are only compared, or only predicted: the loss is that of two batches which hold nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmlm.check.batch import share_of
from mmlm.check.exactness import results
from mmlm.check.ranks import Ranks
from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.distributed import rank
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.decoupled import DecoupledInfoNCE
from mmlm.objectives.hardest_hinge import HardestHinge
from mmlm.objectives.matching import Matching
from mmlm.objectives.sigmoid import Sigmoid
from tests.exactness.cells import STEP_KEY, Sum, make_step, whole_batch

COMPARISONS = {
    "softmax": lambda: InfoNCE(0.3),
    "sigmoid": Sigmoid,
    "decoupled": DecoupledInfoNCE,
    "hinge": HardestHinge,
}


def flagged() -> Batch:
    """Captions of the kit's batch that are for one loss, for the other, for both or for none."""
    number = torch.arange(len(whole_batch().lengths))
    return replace(whole_batch(), compared=number % 3 != 0, predicted=number % 4 != 1)


def only(batch: Batch, chosen: Tensor) -> Batch:
    part = batch._part(range(len(batch.images)), chosen)
    return replace(part, compared=None, predicted=None)


def sum_of(name: str, *, captioning: bool = True, contrastive: bool = True) -> Sum:
    parts = {"contrastive": COMPARISONS[name]} if contrastive else {}
    parts |= {"captioning": Captioning} if captioning else {}
    return Sum(parts, dict.fromkeys(parts, 1.0))


@pytest.mark.parametrize("name", COMPARISONS)
def test_each_loss_is_that_of_its_own_captions(name):
    batch = flagged()
    assert batch.compared is not None
    assert batch.predicted is not None
    found = results(make_step(sum_of(name)), batch, 8, STEP_KEY)
    compared = results(make_step(sum_of(name, captioning=False)), only(batch, batch.compared), 8, STEP_KEY)
    predicted = results(make_step(sum_of(name, contrastive=False)), only(batch, batch.predicted), 8, STEP_KEY)
    for key, value in found.items():
        parts = [one[key] for one in (compared, predicted) if key in one]
        torch.testing.assert_close(value, sum(parts), rtol=1e-9, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", COMPARISONS)
def test_micro_batches_change_nothing(name):
    whole = results(make_step(sum_of(name)), flagged(), 8, STEP_KEY)
    for size in (3, 1):
        found = results(make_step(sum_of(name)), flagged(), size, STEP_KEY)
        for key, value in whole.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=f"{size}: {key}")


def of_a_rank(shares: tuple[int, ...]) -> dict[str, Tensor]:
    """What a rank does."""
    return results(make_step(sum_of("softmax")), share_of(flagged(), rank(), shares), 2, STEP_KEY)


def test_ranks_change_nothing():
    whole = results(make_step(sum_of("softmax")), flagged(), 8, STEP_KEY)
    with Ranks() as ranks:
        for found in ranks.run(2, of_a_rank, (5, 3)):
            for key, value in whole.items():
                torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=key)


def test_pairs_to_match_are_of_captions_that_are_compared():
    batch = flagged()
    parts = Sum({"matching": Matching}, {"matching": 1.0})
    found = results(make_step(parts), batch, 8, STEP_KEY)
    step = make_step(parts)
    assert step.objective.count((batch,), STEP_KEY).counts["matching"]["matched"] == int(
        ((batch.image_index != TEXT_ONLY) & batch.compared).sum()
    )
    assert torch.isfinite(found["total"])
