"""Cells of the grid are built or refused with the reason: the freeze plans that freeze the decoder."""

import pytest

from tests.model.grid.cells import FROZEN_DECODERS, check_cells, options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("built_once")]


@pytest.mark.parametrize("freeze", FROZEN_DECODERS)
@pytest.mark.parametrize("encoder", options("encoder"))
def test_a_cell_is_built_or_refused_with_the_reason(encoder, freeze):
    check_cells(encoder, freeze)
