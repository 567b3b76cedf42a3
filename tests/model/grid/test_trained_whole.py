"""Cells of the grid are built or refused with the reason: the freeze plans that freeze nothing."""

import pytest

from tests.model.grid.cells import TRAINED_WHOLE, check_cells, options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("built_once")]


@pytest.mark.parametrize("freeze", TRAINED_WHOLE)
@pytest.mark.parametrize("encoder", options("encoder"))
def test_a_cell_is_built_or_refused_with_the_reason(encoder, freeze):
    check_cells(encoder, freeze)
