"""Steps by the matching rule, and the costs that it asks for."""

import json

import pytest

from mmlm.core.errors import UserError
from mmlm.studies.costs import CostBook, Counted, Measured
from mmlm.studies.matching import matched_steps

NAMES = ("joint+low", "joint+high", "captions+low", "captions+high")
FLOPS = dict(zip(NAMES, (10.0, 25.0, 4.0, 10.5), strict=True))
SECONDS = dict(zip(NAMES, (0.2, 0.1, 0.4, 0.3), strict=True))
PARAMETERS = dict(zip(NAMES, (1000, 1019, 981, 1000), strict=True))


@pytest.fixture
def book(place):
    """Costs by the tables above; ``asked`` are the cells that were looked at."""
    asked: list[str] = []

    def count(cell):
        asked.append(cell.name)
        return Counted(PARAMETERS[cell.name], ((0, FLOPS[cell.name]),))

    def measure(cell):
        asked.append(cell.name)
        return Measured(SECONDS[cell.name], 1.0, 5.0, "8 steps")

    found = CostBook(place.costs, count, measure, lambda line: None)
    found.asked = asked
    return found


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("nothing", None),
        ("examples", (30, 30, 30, 30)),
        ("parameters", (30, 30, 30, 30)),
        ("flops", (30, 12, 75, 29)),  # 300 FLOPs: 28.57 steps of 10.5
        ("time", (30, 60, 15, 20)),
    ],
)
def test_steps_by_each_rule(opened, book, rule, steps):
    study, cells = opened(matching={"equal": rule})
    cells["joint+low"].config.train.steps = 30
    for cell in cells.values():
        cell.config.train.steps = 30
    assert matched_steps(study, cells, book) == ({} if steps is None else dict(zip(NAMES, steps, strict=True)))


def test_equal_examples_follow_the_batch_size(opened, book):
    axes = {"batch": {"four": [], "eight": ["train.batch_size=8"], "three": ["train.batch_size=3"]}}
    study, cells = opened(axes=axes, baseline="four")
    assert matched_steps(study, cells, book) == {"four": 3, "eight": 2, "three": 4}
    assert book.asked == [], "nothing needs to be counted"


def test_numbers_of_parameters_that_are_apart_are_refused_with_the_counts(opened, book):
    study, cells = opened(matching={"equal": "parameters", "tolerance": 0.015})
    with pytest.raises(UserError) as error:
        matched_steps(study, cells, book)
    assert str(error.value).startswith(
        "matching.equal=parameters: joint+high 1,019 (+1.9%), captions+low 981 (-1.9%) against 1,000 of joint+low, "
    )


def test_a_cell_may_not_set_the_steps_that_a_rule_sets(opened, book):
    axes = {"length": {"short": [], "long": ["train.steps=6"]}}
    study, cells = opened(axes=axes, baseline="short")
    with pytest.raises(UserError, match=r"^cell long: train\.steps=6: matching\.equal=examples sets the steps"):
        matched_steps(study, cells, book)
    study, cells = opened(axes=axes, baseline="short", matching={"equal": "nothing"})
    assert matched_steps(study, cells, book) == {}


def test_costs_are_found_once(opened, book, place):
    """By another command too; the matched steps, and so the folders of runs, stay what they were."""
    _, cells = opened()
    for _ in range(2):
        assert book.counted(cells["joint+high"]).parameters == 1019
        assert book.measured(cells["joint+high"]).seconds == 0.1
    assert book.asked == ["joint+high", "joint+high"]
    again = CostBook(place.costs, pytest.fail, pytest.fail, pytest.fail)
    assert again.counted(cells["joint+high"]) == Counted(1019, ((0, 25.0),))
    assert again.measured(cells["joint+high"]) == Measured(0.1, 1.0, 5.0, "8 steps")
    assert again.known_measured(cells["joint+low"]) is None
    place.costs.write_text(json.dumps({"a": 3}))
    with pytest.raises(UserError, match=r"costs\.json: is damaged; remove it"):
        CostBook(place.costs, pytest.fail, pytest.fail, pytest.fail)


def test_flops_follow_what_trains():
    """A step costs more from step 4 on, and more again from step 10 on."""
    counted = Counted(0, ((0, 1.0), (4, 3.0), (10, 5.0)))
    by_hand = [0.0]
    for step in range(20):
        by_hand.append(by_hand[-1] + (1 if step < 4 else 3 if step < 10 else 5))
    assert [counted.flops(steps) for steps in range(21)] == by_hand
    for budget in (0.2, 1, 4.4, 6, 22, 24.4, 24.6, 60):
        best = min(range(1, 21), key=lambda steps: abs(by_hand[steps] - budget))
        assert abs(by_hand[counted.steps_for(budget)] - budget) == abs(by_hand[best] - budget), budget
