"""Rows of metrics; that they are reduced over ranks is in ``tests/exactness/test_diagnosis.py``."""

import math

import pytest
import torch

from mmlm.core.loss import Loss, Term
from mmlm.training import window as window_module
from mmlm.training.window import Row, Window

CPU = torch.device("cpu")


def term(value: float, weight: float = 1.0, of_tokens: bool = False) -> Term:
    return Term(torch.tensor(4 * value), torch.tensor(4.0), weight, of_tokens)


def filled(*losses: Loss) -> Window:
    window = Window()
    for loss in losses:
        window.add(loss, torch.tensor(2.0))
    return window


def test_a_row_has_means_and_the_weighted_losses_only_where_a_weight_is_not_one():
    losses = [Loss({"a": term(v), "b": term(v, 0.5)}, {"a/accuracy": term(v / 10)}) for v in (1.0, 3.0)]
    row = filled(*losses).means()
    main = {"loss": 3.0, "a": 2.0, "b": 2.0, "a/accuracy": 0.2, "gradient_norm": 2.0}
    assert row.shown == pytest.approx(main)
    assert list(row.shown) == list(main)
    assert row.hidden == pytest.approx({"b/weighted": 1.0})


def test_the_rate_leaves_out_what_is_done_while_it_is_paused(monkeypatch):
    """Steps before a pause count, and so does their time: an evaluation between two steps does not change the rate."""
    now = [100.0]
    monkeypatch.setattr(window_module.time, "monotonic", lambda: now[0])
    window = Window()
    window.start()
    window.steps, now[0] = 4, now[0] + 2.0
    with window.paused():
        now[0] += 30
    window.steps, now[0] = 5, now[0] + 0.5
    assert window.rate(batch_size=8) == pytest.approx(16)
    now[0] += 7
    restored = Window.restored([window.state_dict()], 1, CPU)
    now[0] += 1000
    restored.start()
    assert restored.rate(batch_size=8) == pytest.approx(5 * 8 / 9.5)


def test_perplexity_is_that_of_the_mean_loss():
    row = filled(*(Loss({"a": term(v, of_tokens=True), "b": term(v)}) for v in (1.0, 3.0))).means()
    assert row.hidden == pytest.approx({"a/perplexity": math.exp(2.0)})


@pytest.mark.parametrize(("loss", "perplexity"), [(1e6, math.exp(700)), (math.nan, math.nan)])
def test_a_perplexity_beyond_all_numbers_stops_nothing(loss, perplexity):
    row = filled(Loss({"a": term(loss, of_tokens=True)})).means()
    assert row.hidden == pytest.approx({"a/perplexity": perplexity}, nan_ok=True)


def test_a_term_that_begins_within_the_row_is_averaged_over_its_own_steps():
    row = filled(Loss({"a": term(1.0)}), Loss({"a": term(1.0), "b": term(6.0, 0.5)})).means()
    assert (row.shown["b"], row.hidden) == (6.0, {"b/weighted": 3.0})
    assert row.shown["loss"] == pytest.approx((1 + 4) / 2)


def test_figures_of_some_steps_are_averaged_over_those():
    window = filled(*[Loss({"a": term(1.0)})] * 3)
    window.add_figures({"update_ratio/a": 1.0})
    window.add_figures({"update_ratio/a": 2.0, "modality_gap": 5.0})
    assert window.means().hidden == {"update_ratio/a": 1.5, "modality_gap": 5.0}


# In a checkpoint

FIRST = [Loss({"a": term(v, of_tokens=True), "b": term(v, 0.5)}, {"a/accuracy": term(v / 10)}) for v in (0.1, 0.7)]
SECOND = [Loss({"a": term(v, of_tokens=True), "c": term(v)}) for v in (0.3, 1.1)]


def test_it_goes_on_bit_for_bit():
    straight = filled(*FIRST, *SECOND)
    straight.add_figures({"modality_gap": 0.1})
    first = filled(*FIRST)
    first.add_figures({"modality_gap": 0.1})
    again = Window.restored([first.state_dict()], ranks=1, device=CPU)
    for loss in SECOND:
        again.add(loss, torch.tensor(2.0))
    assert again.means() == straight.means()
    assert list(again.means().shown) == list(straight.means().shown)


def as_rank(monkeypatch: pytest.MonkeyPatch, number: int, states: list[dict[str, object]], ranks: int) -> Row:
    monkeypatch.setattr(window_module, "rank", lambda: number)
    return Window.restored(states, ranks, CPU).means()


def test_every_rank_gets_its_own_back_and_of_another_number_the_first_gets_the_sum(monkeypatch):
    windows = [filled(*FIRST), filled(*FIRST[::-1])]
    states = [window.state_dict() for window in windows]
    for number, window in enumerate(windows):
        assert as_rank(monkeypatch, number, states, ranks=2) == window.means()
    alone = as_rank(monkeypatch, 0, states, ranks=1)
    assert alone.shown["a"] == pytest.approx(0.8)
    assert alone.shown["gradient_norm"] == 2.0
    three = [as_rank(monkeypatch, number, states, ranks=3) for number in range(3)]
    assert [row.shown["a"] for row in three] == pytest.approx([0.8, 0, 0])
    assert [row.shown["gradient_norm"] for row in three] == [2.0] * 3
