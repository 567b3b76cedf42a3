"""One uninterrupted run of two ranks for each module, and commands in processes of their own and in this one."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmlm import train
from tests.conftest import PLUGIN, Outcome, run_here, write_lines, write_shapes
from tests.launch.processes import ALIKE, FOREIGN, LOCAL, RANDOM, Commands, commands, environment_of, tiny_on


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


@pytest.fixture
def here(
    plain_hydra: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """``here(*arguments, module=train, fault=None, after=None)``: a command in this process, its ranks in theirs.

    This spares the time that another process takes to begin. A command that gets a signal needs one of its own.
    """
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.syspath_prepend(str(PLUGIN))

    def run(*arguments: str, module: object = train, fault: str | None = None, after: Path | None = None) -> Outcome:
        with monkeypatch.context() as context:
            for name, value in environment_of(tmp_path / "pid", fault, after).items():
                context.setenv(name, value)
            return run_here(module, arguments, context, capfd)

    return run


@pytest.fixture(scope="module")
def alike(place: Path, tiny_there: tuple[str, ...]) -> tuple[str, ...]:
    """The command line of ``ALIKE``, on images of which three cannot be read and one has no caption."""
    folder = write_shapes(place / "uneven")
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines[1:6:2]:
        (folder / line["image"]).write_bytes((folder / line["image"]).read_bytes()[:60])
    write_lines(folder, [{"image": lines[0]["image"], "captions": []}, *lines[1:]])
    return (*tiny_there, *ALIKE, f"data.train.folder={folder}", "data.max_bad_share=null")


@pytest.fixture
def straight_alone(here: Callable[..., Outcome], alike: tuple[str, ...], folder_of: Callable[[str], Path]) -> Path:
    """The folder of ``ALIKE`` by a single process that nothing happened to, trained once."""
    folder = folder_of("straight_alone")
    if not folder.exists():
        outcome = here(*alike, "name=straight_alone")
        assert (outcome.status, outcome.err) == (0, ""), outcome
    return folder
