"""Weights over the steps."""

import pytest

from mmlm.core.errors import UserError
from mmlm.core.views import CAPTION, EMBED
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.objectives.weights import Ramp


def test_a_ramp_is_flat_then_straight_then_flat():
    ramp = Ramp(first=10, last=20, start=0.5, end=1.5)
    assert [ramp(step) for step in (0, 10, 15, 20, 99)] == [0.5, 0.5, 1.0, 1.5, 1.5]


def test_a_ramp_without_length_is_a_jump():
    jump = Ramp(first=7, last=7)
    assert [jump(step) for step in (0, 6, 7, 8)] == [0, 0, 1, 1]
    assert [Ramp(0, 0, 2.0, 0.5)(step) for step in (0, 1)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, 4), r"^first: 5 and last=4 must be steps in order$"),
        ((-1, 4), r"^first: -1 and last=4 must be"),
        ((0, 4, -1.0), r"^start: -1\.0 is no weight"),
        ((0, 4, 1.0, float("inf")), r"^end: inf is no weight"),
        ((0, 4, 0.0, 0.0), r"^end: a ramp from 0 to 0 trains nothing; use a weight of 0$"),
    ],
)
def test_bad_ramps_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Ramp(*values)


def test_an_objective_is_asked_for_nothing_before_it_begins_and_has_its_weight_afterwards():
    parts = {"contrastive": InfoNCE(), "captioning": Captioning()}
    both = WeightedSum(parts, {"contrastive": 1.0, "captioning": Ramp(first=2, last=4, end=2.0)})
    assert both.views == {EMBED, CAPTION}
    assert both.views_at(2) == {EMBED}
    assert both.views_at(3) == {EMBED, CAPTION}
    assert both.weights_at(2) == {"contrastive": 1.0}
    assert both.weights_at(3) == {"contrastive": 1.0, "captioning": 1.0}
    assert both.weights_at(9)["captioning"] == 2.0
