"""One uninterrupted run of two ranks for each module, and commands that end with the test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Outcome, write_shapes
from tests.launch.processes import LOCAL, RANDOM, Commands, commands, tiny_on


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in ``shapes``."""
    folder = tmp_path_factory.mktemp("launch")
    write_shapes(folder / "shapes")
    return folder


@pytest.fixture(scope="module")
def tiny_there(place: Path) -> tuple[str, ...]:
    """The command line of a tiny run in ``place``."""
    return tiny_on(place / "shapes", place / "runs")


@pytest.fixture(scope="module")
def folder_of(place: Path) -> Callable[[str], Path]:
    """``folder_of(name)``: the folder of the run with this ``name=``."""
    return lambda name: place / "runs" / "caption_base" / name / "seed=0"


@pytest.fixture
def ordered(tmp_path: Path) -> Iterator[Commands]:
    """Starts commands."""
    with commands(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def straight(place: Path, tiny_there: tuple[str, ...], folder_of: Callable[[str], Path]) -> tuple[Outcome, Path]:
    """``RANDOM`` by two ranks of ``launcher=local`` that nothing happens to: what it printed, and its folder."""
    with commands(place) as started:
        outcome = started.run("mmlm.train", *tiny_there, *RANDOM, *LOCAL, "name=straight")
    assert (outcome.status, outcome.err) == (0, ""), outcome
    return outcome, folder_of("straight")
