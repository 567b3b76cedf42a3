"""What the names in a row of training are: each shipped objective declares its own, and training the rest."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping

import pytest
import torch

import mmlm.objectives
from mmlm.check.batch import whole_batch
from mmlm.check.exactness import make_step, step_key
from mmlm.check.tiny import tiny_config
from mmlm.core.figure import LOSS, Figure, family_of
from mmlm.experiment.build import build_objective
from mmlm.experiment.config import CONFIG_DIR
from mmlm.objectives.objective import Comparison, FusionObjective, Objective
from mmlm.objectives.shared.masked_patches import MaskedPatches
from mmlm.objectives.shared.token_prediction import TokenPrediction
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.training.diagnosis import WeightsBefore
from mmlm.training.gradients import backward
from mmlm.training.reporter import training_figures
from mmlm.training.window import Window
from tests.exactness import cells

TRIED = [
    *((f"objective={file.stem}",) for file in sorted((CONFIG_DIR / "objective").glob("*.yaml"))),
    ("objective=coca_distillation", "objective.weights.affinity_distillation=1"),
]
"""Every option, and those settings that have an objective more."""
BASES = {Objective, Comparison, FusionObjective, TokenPrediction, MaskedPatches}


def shipped() -> set[type[Objective]]:
    """Every objective of the package that can be chosen."""
    modules = pkgutil.walk_packages(mmlm.objectives.__path__, "mmlm.objectives.")
    members = [member for module in modules for _, member in inspect.getmembers(importlib.import_module(module.name))]
    return {m for m in members if inspect.isclass(m) and issubclass(m, Objective)} - BASES


def undeclared(figures: Mapping[str, Figure], names: Mapping[str, float]) -> list[str]:
    return [name for name in names if name not in figures and family_of(figures, name) is None]


def test_every_objective_stands_in_an_option():
    """Which the kit tries, over ranks and micro-batches: see ``tests/check``."""
    sums = [build_objective(tiny_config(settings)) for settings in TRIED]
    assert {type(part) for one in sums for part in one.named_parts().values()} == shipped()


@pytest.mark.parametrize("settings", TRIED, ids=" ".join)
def test_every_name_of_a_row_is_declared(settings):
    config = tiny_config(settings)
    step, key = make_step(config), step_key(config)
    loss = backward(step, (whole_batch(config.data.image_size),), key, diagnose=True)
    window = Window()
    window.add(loss, torch.tensor(2.0))
    window.add_figures(WeightsBefore(step).update_ratios())
    row = window.means()
    figures = training_figures(step.objective.figures)
    assert undeclared(figures, {**row.shown, **row.hidden}) == []
    terms = {key for key, figure in step.objective.figures.items() if figure.group == LOSS}
    assert loss.terms.keys() <= terms
    assert terms.isdisjoint(loss.figures)
    begun = step.objective.active(key.step)
    with_declaration = {name for name in step.objective.figures if name.partition("/")[0] in begun}
    made = loss.terms.keys() | loss.figures.keys()
    assert with_declaration - made <= {"reconstruction/explained"}, "what is declared is made"


def test_an_objective_that_declares_nothing_has_one_term_of_its_own_name():
    figures = WeightedSum({"odd": Objective()}, {"odd": 1.0}).figures
    assert list(figures) == ["odd"]
    assert (figures["odd"].heading, figures["odd"].group) == ("odd", LOSS)


def test_terms_are_headed_by_their_label_and_figures_by_their_objective():
    figures = cells.make_step(cells.SUMS["coca with distillation"]).objective.figures
    headings = {name: figure.heading for name, figure in figures.items()}
    assert headings["captioning"] == "captioning"
    assert headings["captioning/accuracy"] == "captioning accuracy"
    assert headings["contrastive/temperature"] == "temperature"
    assert headings["embedding/image"] == "embedding/image", "one of two terms"
    assert headings["self"] == "self"
