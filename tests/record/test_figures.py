"""figures.json: what is written is read again, what is there already stays, and what is damaged does no harm."""

import json
from dataclasses import fields

import pytest

from mmlm.core.figure import Figure, FigureGroup
from mmlm.evaluation.caption_scores import FIGURES
from mmlm.record.figures import RunFigures, read_figures, record_figures
from mmlm.training.reporter import training_figures

FULL = Figure(
    name="Zero-shot",
    meaning="the nearest name is right",
    group=FigureGroup("Naming", "Does it know names?"),
    title="naming, zero-shot",
    share=True,
    higher_is_better=True,
    chance=0.1,
    low="low",
    count="count",
    among="among",
    high="high",
    shown=("table", "compare"),
    headline="{value} are named right",
    beside="naming",
    family=True,
    log_scale=True,
    noiseless=True,
)


def test_every_field_is_read_as_it_was_written(tmp_path):
    assert all(getattr(FULL, field.name) != getattr(Figure(""), field.name) for field in fields(Figure)), "all are set"
    written = RunFigures({"plain": Figure("plain")}, {"full": FULL, "named": Figure("a", chance="guess")})
    record_figures(tmp_path, written)
    assert read_figures(tmp_path) == written


def test_what_ships_is_read_as_it_was_written(tmp_path):
    shipped = RunFigures(training_figures({}), FIGURES)
    record_figures(tmp_path, shipped)
    assert read_figures(tmp_path) == shipped


def test_new_declarations_win_and_others_stay(tmp_path):
    record_figures(tmp_path, RunFigures({"loss": Figure("total")}, {"a": Figure("A"), "b": Figure("B")}))
    record_figures(tmp_path, RunFigures(evaluation={"c": Figure("C"), "a": Figure("new")}))
    found = read_figures(tmp_path)
    assert found.training == {"loss": Figure("total")}
    assert [(name, figure.name) for name, figure in found.evaluation.items()] == [("a", "new"), ("b", "B"), ("c", "C")]


def test_what_a_later_version_adds_is_left_out(tmp_path):
    values = {"name": "A", "colour": "red", "shown": ["table", "hologram"], "group": {"name": "G", "icon": "x"}}
    (tmp_path / "figures.json").write_text(json.dumps({"training": {}, "evaluation": {"a": values}}))
    assert read_figures(tmp_path).evaluation == {"a": Figure("A", group=FigureGroup("G"), shown=("table",))}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"training": {}}',
        '{"training": {}, "evaluation": []}',
        '{"training": {}, "evaluation": {"a": 3}}',
        '{"training": {}, "evaluation": {"a": {"meaning": "no name"}}}',
        '{"training": {}, "evaluation": {"a": {"name": "A", "share": "yes"}}}',
        '{"training": {}, "evaluation": {"a": {"name": "A", "chance": []}}}',
        '{"training": {}, "evaluation": {"a": {"name": "A", "group": "G"}}}',
        '{"training": {}, "evaluation": {"a": {"name": "A", "shown": 3}}}',
    ],
)
def test_a_damaged_file_declares_nothing_and_can_be_written_anew(tmp_path, text):
    (tmp_path / "figures.json").write_text(text)
    assert read_figures(tmp_path) == RunFigures(damaged=True)
    record_figures(tmp_path, RunFigures(evaluation={"a": Figure("A")}))
    assert read_figures(tmp_path) == RunFigures(evaluation={"a": Figure("A")})


def test_no_file_is_no_damage(tmp_path):
    assert read_figures(tmp_path) == RunFigures()
