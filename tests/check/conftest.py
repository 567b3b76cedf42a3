"""Simulated ranks for all tests of a file."""

from collections.abc import Iterator

import pytest

from mmlm.check.ranks import Ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Three processes, started at their first use."""
    with Ranks() as started:
        yield started
