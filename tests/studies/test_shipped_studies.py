"""The studies that ship: every cell composes and is scored, and what is said to be equal is."""

from functools import cache

import pytest

from mmlm.cli.checked_config import compose_typed
from mmlm.evaluation.evaluate import evaluator_of
from mmlm.experiment.build import build_evaluators, build_model
from mmlm.studies.grid import Cell, cells_of
from mmlm.studies.settings import Equal, Study
from mmlm.studies.study_file import STUDIES, find_study, read_study

SHIPPED = sorted(file.stem for file in STUDIES.glob("*.yaml"))
TOKENS = 400
"""The vocabulary of drawn scenes at most; what is compared does not depend on it."""


@cache
def opened(name: str) -> tuple[Study, dict[str, Cell]]:
    study = read_study(find_study(name))
    return study, cells_of(study, compose_typed, "runs")


def parameters(cell: Cell, slot: str) -> int:
    """Of one part of a cell's model."""
    part = getattr(build_model(cell.config, TOKENS), slot)
    return sum(parameter.numel() for parameter in part.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_cell_composes_and_every_metric_has_a_cell(name):
    study, cells = opened(name)
    assert study.baseline in cells
    for metric in study.metrics:
        assert any(evaluator_of(metric, build_evaluators(cell.config)) for cell in cells.values()), metric
    for cell in cells.values():
        assert set(study.splits) <= set(cell.config.data.validation)
        assert not cell.config.data.workers  # a run has one core


@pytest.mark.parametrize(("name", "slot"), [("bridges_matched", "bridge"), ("decoders", "decoder")])
def test_what_is_compared_at_equal_parameters_has_as_many_by_itself(name, slot):
    study, cells = opened(name)
    assert study.matching.equal is Equal.parameters
    own = parameters(cells[study.baseline], slot)
    for cell in cells.values():
        assert parameters(cell, slot) == pytest.approx(own, rel=0.005), cell.name


def test_all_bridges_hand_over_as_many_tokens():
    memory = {build_model(cell.config, TOKENS).bridge.num_memory for cell in opened("bridges_matched")[1].values()}
    assert memory == {16}


def test_each_objective_is_scored_by_what_it_trains():
    _, cells = opened("objectives")
    scored = {name: set(cell.config.evaluators) for name, cell in cells.items()}
    trains = {name: set(cell.config.objective["objectives"]) for name, cell in cells.items()}
    for name, evaluators in scored.items():
        assert ("retrieval" in evaluators) == ("contrastive" in trains[name])
        assert ("captioning" in evaluators) == bool({"captioning", "cappa"} & trains[name])
        assert {"probe", "compositionality"} <= evaluators


def test_the_sizes_of_the_ladder_rise_alike_for_both_objectives():
    _, cells = opened("ladder")
    steps: dict[str, list[int]] = {}
    widths: dict[str, list[int]] = {}
    for cell in cells.values():
        steps.setdefault(cell.levels["objective"], []).append(cell.config.train.steps)
        widths.setdefault(cell.levels["objective"], []).append(cell.config.model.width)
    for of_objective in (steps, widths):
        first, second = of_objective.values()
        assert first == second == sorted(set(first))
        assert len(first) == 5
