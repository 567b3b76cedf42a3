"""An evaluator and an objective of somebody's own are shown everywhere, by what they declare of their numbers."""

import importlib
import json

import pytest

from mmlm import compare, evaluate
from mmlm.experiment.run_identity import run_folder
from tests.conftest import PLUGIN
from tests.reports.test_page import text_of

OPTION = PLUGIN / "configs" / "evaluators" / "own_zero_shot.yaml"


@pytest.fixture
def own_figures(monkeypatch) -> tuple[str, ...]:
    """Overrides that take the evaluator and the objective of ``tests/plugin/own_figures.py``."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    own = ("plugins=[own_figures]", f"hydra.searchpath=[file://{PLUGIN / 'configs'}]")
    return (*own, "evaluators=own_zero_shot", "objective=own_pull")


@pytest.mark.usefixtures("charts")
def test_they_are_in_console_report_and_comparison(train_tiny, tiny_config, own_figures, command, tmp_path):
    folders = []
    for seed in (0, 1):
        overrides = (*own_figures, "train.eval_every=1", f"seed={seed}")
        outcome = train_tiny(*overrides)
        assert (outcome.status, outcome.err) == (0, ""), outcome
        folders.append(run_folder(tiny_config(*overrides)))
    scores = json.loads((folders[1] / "scores.json").read_text())["splits"]["validation"]
    right = scores["zero_shot/accuracy"]

    *steps, last, _ = outcome.out.splitlines()
    assert " pull " in steps[-1], "a term of the loss"
    assert "pull/near" not in steps[-1], "declared, and not for the console"
    assert "pull/odd_thing" in steps[-1], "not declared"
    assert f"image_to_text/R@1 {scores['image_to_text/R@1']:.3f}" in last
    assert f"zero_shot/accuracy {right:.3f}" in last
    assert "zero_shot/distance" not in last

    text = text_of((folders[1] / "report.html").read_text())
    assert f"and {100 * right:.0f}% of 8 images are named right." in text
    assert "Naming Does it know what things are called? Zero-shot the nearest name is that of its concept " in text
    assert f"that of its concept {100 * right:.1f}% chance 12.5%" in text
    assert f"Other What else was measured. zero_shot/odd_count {scores['zero_shot/odd_count']:.2f}" in text
    curves = text.split(" Curves ", 1)[1]
    loss, rest = curves.split(" Validation ", 1)
    validation, rest = rest.split(" Diagnoses ", 1)
    training = rest.split(" Training ", 1)[1]
    assert "pull train " in loss
    assert f"Zero-shot validation {100 * right:.1f}%" in validation
    assert "zero shot odd count validation" in validation
    near = training.split("pull near now ", 1)[1]
    assert near.split()[0].endswith("%")
    assert "pull odd thing now" in training

    both = command(compare, f"runs=[one:{folders[0]},two:{folders[1]}]", f"out={tmp_path / 'out'}")
    assert (both.status, both.err) == (0, "")
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in both.out.splitlines()[:4]]
    assert head[-4:-2] == ["zero shot/accuracy", "zero shot/distance (less is better)"]
    assert head[-2:] == ["steps, scored in fp32", "minutes"]
    assert rows[1][0] == "two"
    assert rows[1][-4:-2] == [f"{100 * right:.1f}", f"{scores['zero_shot/distance']:.2f}"]
    assert rows[1][head.index("captioning/CIDEr-D")] == f"{scores['captioning/CIDEr-D']:.2f}"
    assert rows[1][head.index("captioning/exact")] == f"{100 * scores['captioning/exact']:.1f}"


def test_they_are_applied_to_a_run_that_has_finished(trained, command, monkeypatch):
    folder = trained("evaluators=retrieval")
    monkeypatch.syspath_prepend(str(PLUGIN))
    before = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    outcome = command(evaluate, f"run={folder}", f"evaluators={OPTION}", "plugins=[own_figures]")
    assert (outcome.status, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    scores = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    assert before.items() <= scores.items()
    assert ["zero_shot/accuracy", f"{100 * scores['zero_shot/accuracy']:.1f}%"] in lines
    assert scores["captioning/CIDEr-D"] == 0.0, "after three steps, no caption has a word of the true one"
    assert ["captioning/CIDEr-D", "0.000"] in lines
    assert "are named right." in text_of((folder / "report.html").read_text())
    # The run's own evaluators, and its own declarations of training, are as they were.
    again = command(evaluate, f"run={folder}")
    assert "zero_shot" not in again.out
    text = text_of((folder / "report.html").read_text())
    assert "Zero-shot the nearest name is that of its concept" in text
    assert "learning rate now" in text


def test_a_shipped_option_is_applied_to_a_run_that_has_finished(trained, command):
    folder = trained("evaluators=retrieval")
    outcome = command(evaluate, f"run={folder}", "evaluators=captioning")
    assert (outcome.status, outcome.err) == (0, "")
    assert "captioning/CIDEr-D" in outcome.out
    assert "R@1" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluators=nonsense",), "unknown evaluators 'nonsense'; there are: "),
        (("evaluators=no/such/file.yaml",), "evaluators: there is no file no/such/file.yaml"),
        ((f"evaluators={OPTION}",), "evaluators.zero_shot: _target_ 'own_figures.ZeroShot' is not allowed"),
    ],
)
def test_mistakes_with_evaluators_of_another_option(trained, command, arguments, message):
    folder = trained("evaluators=retrieval")
    assert message in command(evaluate, f"run={folder}", *arguments).mistake


def test_a_file_of_evaluators_has_its_place_and_a_name_of_its_own(trained, command, tmp_path):
    folder = trained("evaluators=retrieval")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "evaluators").mkdir()
    for name, message in (("elsewhere/own", "must lie in a folder called evaluators"), ("evaluators/standard", "name")):
        file = tmp_path / f"{name}.yaml"
        file.write_text(OPTION.read_text())
        assert message in command(evaluate, f"run={folder}", f"evaluators={file}").mistake


def test_a_metric_of_which_less_is_better_chooses_no_checkpoint(train_tiny):
    mistake = train_tiny("train.best_metric=validation/loss/captioning", "train.eval_every=1").mistake
    assert "train.best_metric: 'validation/loss/captioning' is the better the lower it is" in mistake


def test_two_towers_have_no_captions_to_score(trained, two_towers, command):
    folder = trained(*two_towers)
    mistake = command(evaluate, f"run={folder}", "plugins=[own_parts]", "evaluators=captioning").mistake
    assert "evaluators.loss: there is no decoder to evaluate" in mistake


def test_training_writes_the_declarations_before_its_first_step(train_tiny, tiny_config, monkeypatch):
    monkeypatch.setattr("mmlm.run.session.fit", lambda *parts: (_ for _ in ()).throw(RuntimeError("the power is cut")))
    with pytest.raises(RuntimeError, match="the power is cut"):
        train_tiny()
    figures = json.loads((run_folder(tiny_config()) / "figures.json").read_text())
    assert figures["training"]["captioning/accuracy"]["share"]
    assert figures["evaluation"]["captioning/exact"]["name"] == "Exact"


def test_an_evaluator_that_declares_nothing_at_all_is_refused_by_name(train_tiny, own_figures, monkeypatch):
    own = importlib.import_module("own_figures")
    monkeypatch.delattr(own.ZeroShot, "figures")
    mistake = train_tiny(*own_figures).mistake
    assert mistake.startswith("evaluators.zero_shot: ZeroShot is no evaluator; it has to be called with a split")
