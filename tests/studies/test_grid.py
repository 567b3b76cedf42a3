"""The cells of a study and the command lines of its runs."""

from pathlib import Path

import pytest

from mmlm.cli.checked_config import compose_typed
from mmlm.core.errors import UserError
from mmlm.experiment.run_identity import run_folder
from mmlm.studies.grid import compared_runs, tuning_runs
from tests.studies.conftest import TUNED


def test_cells_are_all_combinations_of_levels(opened):
    study, cells = opened()
    assert list(cells) == ["joint+low", "joint+high", "captions+low", "captions+high"]
    for name, cell in cells.items():
        loss, _, rate = name.partition("+")
        assert cell.levels == {"loss": loss, "rate": rate}
        assert cell.overrides == (*study.base, *study.axes["loss"][loss], *study.axes["rate"][rate])
        assert cell.config.optim["lr"] == {"low": 0.001, "high": 0.004}[rate]
        assert cell.config.objective["weights"]["contrastive"] == {"joint": 1.0, "captions": 0}[loss]


def test_cells_may_be_listed(opened):
    _, cells = opened(axes=None, cells={"own": [], "slow": ["optim.lr=1e-4"]}, baseline="own")
    assert [(name, cell.levels) for name, cell in cells.items()] == [("own", {}), ("slow", {})]


def test_runs_are_the_folders_of_their_command_lines(opened, runs):
    """All cells of one seed come before the next: a part of the runs is a table too."""
    study, cells = opened()
    found = compared_runs(study, cells, runs, {"joint+low": 7}, {}, compose_typed)
    assert [(run.seed, run.cell) for run in found] == [(seed, cell) for seed in (0, 1) for cell in cells]
    assert [run.steps for run in found] == [7, 3, 3, 3] * 2
    for run in found:
        assert run.folder == run_folder(compose_typed(run.overrides))
        assert run.folder.is_relative_to(Path(runs))
        assert run.label == f"{run.cell}.seed={run.seed}"
    assert len({run.folder for run in found}) == len(found)


def test_runs_that_tune_and_those_that_follow(opened, runs):
    study, cells = opened(**TUNED)
    tuning = tuning_runs(study, cells, runs, compose_typed)
    assert [(run.tuned, run.cell) for run in tuning] == [(value, cell) for value in (0.01, 0.02) for cell in cells]
    for run in tuning:
        config = compose_typed(run.overrides)
        assert (config.optim["lr"], config.train.steps, config.seed, run.steps) == (run.tuned, 2, 9, 2)
        assert run.folder == run_folder(config)
    assert compared_runs(study, cells, runs, {}, {}, compose_typed) == []
    (first, second) = compared_runs(study, cells, runs, {}, {"joint+high": 0.02}, compose_typed)
    assert (first.cell, first.seed, second.seed) == ("joint+high", 0, 1)
    assert compose_typed(first.overrides).optim["lr"] == 0.02


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tuning": TUNED["tuning"]}, "cell joint+low: sets optim.lr itself, which tuning sets; leave one of them out"),
        ({"baseline": "joint+lo"}, "baseline: 'joint+lo' is no cell; did you mean 'joint+low'?"),
        (
            {"axes": {"a": {"x": [], "y": ["optim.lr=0.002"]}}, "baseline": "x"},
            "cells x and y are the same computation",
        ),
        ({"axes": {"a": {"x": [], "y y": []}}, "baseline": "x"}, "'y y' is no name of a cell, axis or level"),
        ({"axes": {"a": {"x": ["seed=3"]}}, "baseline": "x"}, "cell x: seed=3: a cell may not set this"),
        (
            {"axes": {"a": {"x": ["launcher=local"]}}, "baseline": "x"},
            "cell x: launcher=local: a cell may not set this",
        ),
        ({"axes": {"a": {"x": ["optim.lrr=3"]}}, "baseline": "x"}, "cell x: optim.lrr: "),
        ({"axes": {"a": {"x": ["bridge=pooler"]}}, "baseline": "x"}, "cell x: unknown bridge 'pooler'"),
        ({"axes": {"a": {"x": ["+train.stepz=3"]}}, "baseline": "x"}, "cell x: train.stepz: "),
        ({"axes": {"a": {}}, "baseline": "x"}, "axes.a: has no level; name at least one"),
        ({"splits": ["validatio"]}, "splits: 'validatio' is no validation split of cell joint+low; did you mean"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(opened, changes, told):
    with pytest.raises(UserError) as error:
        opened(**changes)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)
