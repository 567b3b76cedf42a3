"""What the names in a row of training are: each shipped objective declares its own, and training the rest."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping

import pytest
import torch

import mmlm.objectives
from mmlm.core.figure import LOSS, Figure, family_of
from mmlm.objectives.objective import Comparison, FusionObjective, Objective
from mmlm.objectives.shared.masked_patches import MaskedPatches
from mmlm.objectives.shared.token_prediction import TokenPrediction
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.training.diagnosis import WeightsBefore
from mmlm.training.gradients import backward
from mmlm.training.reporter import training_figures
from mmlm.training.window import Window
from tests.exactness.cells import STEP_KEY, SUMS, make_step, whole_batch

BASES = {Objective, Comparison, FusionObjective, TokenPrediction, MaskedPatches}


def shipped() -> set[type[Objective]]:
    """Every objective of the package that can be chosen."""
    modules = pkgutil.walk_packages(mmlm.objectives.__path__, "mmlm.objectives.")
    members = [member for module in modules for _, member in inspect.getmembers(importlib.import_module(module.name))]
    return {m for m in members if inspect.isclass(m) and issubclass(m, Objective)} - BASES


def undeclared(figures: Mapping[str, Figure], names: Mapping[str, float]) -> list[str]:
    return [name for name in names if name not in figures and family_of(figures, name) is None]


def test_every_objective_is_tried():
    assert {type(make()) for parts in SUMS.values() for make in parts.parts.values()} == shipped()


@pytest.mark.parametrize("name", SUMS)
def test_every_name_of_a_row_is_declared(name):
    step = make_step(SUMS[name])
    loss = backward(step, (whole_batch(),), STEP_KEY, diagnose=True)
    window = Window()
    window.add(loss, torch.tensor(2.0))
    window.add_figures(WeightsBefore(step).update_ratios())
    row = window.means()
    figures = training_figures(step.objective.figures)
    assert undeclared(figures, {**row.shown, **row.hidden}) == []
    terms = {key for key, figure in step.objective.figures.items() if figure.group == LOSS}
    assert loss.terms.keys() <= terms
    assert terms.isdisjoint(loss.figures)
    with_declaration = {key for key in step.objective.figures if key.partition("/")[0] in step.objective.active(5)}
    made = loss.terms.keys() | loss.figures.keys()
    assert with_declaration - made <= {"reconstruction/explained"}, "what is declared is made"


def test_an_objective_that_declares_nothing_has_one_term_of_its_own_name():
    figures = WeightedSum({"odd": Objective()}, {"odd": 1.0}).figures
    assert list(figures) == ["odd"]
    assert (figures["odd"].heading, figures["odd"].group) == ("odd", LOSS)


def test_terms_are_headed_by_their_label_and_figures_by_their_objective():
    figures = make_step(SUMS["coca with distillation"]).objective.figures
    headings = {name: figure.heading for name, figure in figures.items()}
    assert headings["captioning"] == "captioning"
    assert headings["captioning/accuracy"] == "captioning accuracy"
    assert headings["contrastive/temperature"] == "temperature"
    assert headings["embedding/image"] == "embedding/image", "one of two terms"
    assert headings["self"] == "self"
