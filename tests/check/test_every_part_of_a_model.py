"""Every option of the slots of a model keeps all rules of its slot: the kit, on the folder of configs."""

import pytest

from tests.check.options import CHECKED, MODEL_SLOTS, check_option

MINE = [(slot, option) for slot, option in CHECKED if slot in MODEL_SLOTS]


@pytest.mark.thorough
@pytest.mark.slow  # starts ranks
@pytest.mark.parametrize(("slot", "option"), MINE, ids=map("=".join, MINE))
def test_an_option_keeps_the_rules(slot, option, ranks, request):
    check_option(slot, option, ranks, request)
