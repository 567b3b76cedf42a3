"""A third of the grid's cells is built or refused with the reason: the freeze plans with adapters, which take long."""

import pytest

from tests.model.grid.cells import ADAPTED, check_cells, options, third

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("built_once")]


@pytest.mark.parametrize("freeze", ADAPTED)
@pytest.mark.parametrize("encoder", options("encoder"))
def test_a_cell_is_built_or_refused_with_the_reason(encoder, freeze):
    check_cells(encoder, freeze, third)
