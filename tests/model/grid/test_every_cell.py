"""Every cell of a model that is trained whole is built, or refused with the reason."""

import pytest

from tests.model.grid.cells import CELLS, check_cells, options

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.usefixtures("built_once")]


@pytest.mark.parametrize("encoder", options("encoder"))
def test_a_cell_is_built_or_refused_with_the_reason(encoder):
    check_cells([cell for cell in CELLS if (cell.encoder, cell.freeze) == (encoder, "none")])
