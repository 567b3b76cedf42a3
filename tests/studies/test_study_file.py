"""A study's file is read as its schema says; what is wrong in it is one line."""

import pytest

from mmlm.core.errors import UserError
from mmlm.studies.settings import Equal
from mmlm.studies.study_file import STUDIES, find_study, read_study


def test_a_study_is_what_its_file_says(write_study):
    study = read_study(write_study(looks=[1, 2], tuning={"values": [1e-3, 2e-3], "steps": 5}))
    assert (study.question, study.baseline, study.seeds) == ("Does it help?", "joint+low", [0, 1])
    assert study.axes["loss"] == {"joint": [], "captions": ["objective.weights.contrastive=0"]}
    assert (study.matching.equal, study.matching.tolerance) == (Equal.examples, 0.02)
    assert (study.tuning.setting, study.tuning.values, study.tuning.steps) == ("optim.lr", [1e-3, 2e-3], 5)
    assert study.looks == [1, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baselin": "a"}, "small.yaml: baselin: no such setting; did you mean baseline?"),
        ({"baseline": None}, "small.yaml: baseline: required, and not set; write baseline=VALUE"),
        ({"seeds": ["a"]}, "small.yaml: seeds[0]: 'a' is not an int"),
        ({"seeds": []}, "small.yaml: seeds: none is given; list them"),
        ({"seeds": [1, 1]}, "small.yaml: seeds: [1, 1] must name each once"),
        ({"seeds": [-1]}, "small.yaml: seeds: -1 must be at least 0"),
        ({"splits": []}, "small.yaml: splits: none is given; list them"),
        (
            {"axes": {"loss": {"joint": "objective=coca"}}},
            "small.yaml: axes.loss.joint: 'objective=coca' is not a list",
        ),
        ({"axes": {"loss": ["joint"]}}, "small.yaml: axes.loss: ['joint'] is not a mapping of names to overrides"),
        ({"axes": None, "cells": {"a": 3}}, "small.yaml: cells.a: 3 is not a list"),
        ({"cells": {"a": []}}, "small.yaml: cells: give either axes or cells, with overrides by name"),
        ({"axes": None}, "small.yaml: axes: give either axes or cells, with overrides by name"),
        ({"matching": {"equal": "flop"}}, "small.yaml: matching.equal: 'flop' is not one of nothing, examples, flops"),
        ({"matching": {"tolerance": 2}}, "small.yaml: matching.tolerance: 2.0 must lie in [0, 1), such as 0.02"),
        ({"tuning": {"values": [1e-3]}}, "small.yaml: tuning.values: [0.001] must be two different values at least"),
        ({"tuning": {"values": [1, 2]}}, "small.yaml: tuning.steps: None must be the number of steps"),
        ({"tuning": {"steps": 3}}, "small.yaml: tuning.steps: has no effect without tuning.values"),
        ({"tuning": {"values": [1, 2], "steps": 1, "seed": 1}}, "small.yaml: tuning.seed: 1 is one of seeds"),
        (
            {"looks": [2, 1]},
            "small.yaml: looks: [2, 1] must rise, from 1 at least, and end with the number of seeds, 2",
        ),
        ({"looks": [1]}, "small.yaml: looks: [1] must rise"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(write_study, changes, told):
    with pytest.raises(UserError) as error:
        read_study(write_study(**changes))
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_a_study_is_found_by_its_name_or_its_file(write_study, tmp_path):
    assert find_study("bridges_small") == STUDIES / "bridges_small.yaml"
    assert find_study(str(write_study())) == tmp_path / "small.yaml"
    with pytest.raises(UserError, match="there is no study 'bridges'; did you mean 'bridges_small'\\?; or give a file"):
        find_study("bridges")
    with pytest.raises(UserError, match=r"there is no file nowhere\.yaml"):
        find_study("nowhere.yaml")


def test_a_file_that_is_no_yaml_is_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("question: [")
    with pytest.raises(UserError, match=r"^bad\.yaml: .*line 1"):
        read_study(tmp_path / "bad.yaml")


def test_every_study_that_ships_is_one():
    files = sorted(STUDIES.glob("*.yaml"))
    assert files
    for file in files:
        assert read_study(file).question.endswith("?")
        assert f"python -m mmlm.study {file.stem}" in file.read_text(encoding="utf-8")
