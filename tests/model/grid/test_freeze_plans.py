"""Cells of each freeze plan, in which any two options meet, are built, or refused with the reason."""

import itertools

import pytest

from tests.model.grid.cells import CELLS, SLOTS, check_cells, options, stands_for_others

PLANS = [plan for plan in options("freeze") if plan != "none"]


def test_any_two_options_meet():
    cells = [cell for cell in CELLS if cell.freeze == PLANS[0] and stands_for_others(cell)]
    for one, other in itertools.combinations(SLOTS[:-1], 2):
        met = {(getattr(cell, one), getattr(cell, other)) for cell in cells}
        assert met == set(itertools.product(options(one), options(other))), (one, other)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize("freeze", PLANS)
def test_a_cell_is_built_or_refused_with_the_reason(freeze):
    check_cells([cell for cell in CELLS if cell.freeze == freeze and stands_for_others(cell)])
