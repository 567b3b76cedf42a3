"""A beam: wide enough, it finds the best of all captions, whatever lengths count for."""

import itertools

import pytest
import torch
from torch import Tensor

from mmlm.evaluation.generation.beam import beam_search
from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.evaluation.generation.step_by_step import write_step_by_step
from mmlm.evaluation.generation.task import Task
from tests.evaluation.hand_made import RandomTable

START, END = 1, 2


def task_of(tables: Tensor, max_tokens: int, first: tuple[int, ...] = (START,), **rules: object) -> Task:
    return Task(torch.arange(len(tables)), first, END, max_tokens, LogitRules(END, **rules))


def all_captions(
    table: Tensor, max_tokens: int, power: float, first: tuple[int, ...] = (START,)
) -> list[tuple[tuple[int, ...], float]]:
    """Every caption of up to ``max_tokens`` and its score, the best first."""
    finished, live = [], [(first, 0.0)]
    for _ in range(max_tokens - len(first)):
        longer = []
        for prefix, total in live:
            before = prefix[-2] if len(prefix) > 1 else 0
            terms = (table[before, prefix[-1]] * (1 + len(prefix) / 10)).double().log_softmax(dim=0).tolist()
            longer += [((*prefix, token), total + term) for token, term in enumerate(terms)]
        finished += [one for one in longer if one[0][-1] == END]
        live = [one for one in longer if one[0][-1] != END]
    captions = [(prefix[len(first) :], total) for prefix, total in [*finished, *live]]
    return sorted(((one, total / len(one) ** power) for one, total in captions), key=lambda scored: -scored[1])


def tables_of(count: int, vocabulary: int, likely_end: float = 0.0, seed: int = 0) -> Tensor:
    tables = torch.randn(count, vocabulary, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
    tables[..., END] += likely_end
    return tables.double()


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("likely_end", [-2.0, 0.0, 3.0])
def test_a_wide_beam_is_an_exhaustive_search(likely_end, power):
    tables = tables_of(2, 5, likely_end)
    for max_tokens, beams, count in ((2, 9, 9), (4, 64, 40), (5, 256, 7)):
        found = beam_search(RandomTable(), tables, task_of(tables, max_tokens), beams, count, power)
        for table, of_image in zip(tables, found, strict=True):
            expected = all_captions(table, max_tokens, power)[:count]
            assert [one.tokens for one in of_image] == [tokens for tokens, _ in expected]
            assert [one.score for one in of_image] == pytest.approx([score for _, score in expected], abs=1e-6)
            for one in of_image:
                assert one.score == pytest.approx(one.log_probability / len(one.tokens) ** power, abs=1e-6)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.6, 1.0, 1.7])
def test_the_search_goes_on_while_a_live_caption_can_win(power):
    """It ends early, and finds exactly what a search to the last step would: a search that cannot end early."""

    class Counting(RandomTable):
        steps = 0

        def decode(self, tokens, cache):
            self.steps += 1
            return super().decode(tokens, cache)

    saved = 0
    for seed in range(12):
        tables = tables_of(1, 6, 2.0, seed)
        model, task = Counting(), task_of(tables, 9)
        (found,) = beam_search(model, tables, task, 4, 2, power)
        # With as many captions wanted as there never are, no step is left out.
        (whole,) = beam_search(RandomTable(), tables, task, 4, 500, power)
        assert [one.tokens for one in found] == [one.tokens for one in whole[:2]]
        saved += 8 - model.steps
    assert saved > 0 or power > 1


def test_it_is_not_the_shortest_caption_that_wins_but_the_best():
    """An end that is at hand at once, with 0.3; and a sure caption behind a first word of 0.28."""
    table = torch.full((1, 6, 6, 6), -30.0)
    table[..., :, START, :] = torch.tensor([-30, -30, 0.3, 0.28, 0.22, 0.2]).log().nan_to_num(-30.0)
    table[..., 3, 4] = table[..., 4, 5] = table[..., 5, END] = 30.0
    assert beam_search(RandomTable(), table, task_of(table, 9), 3, 1, 0.0)[0][0].tokens == (END,)
    assert beam_search(RandomTable(), table, task_of(table, 9), 3, 1, 1.0)[0][0].tokens == (3, 4, 5, END)


def test_larger_beams_find_no_worse_captions_on_the_whole():
    tables, scores = tables_of(30, 8, 1.0), []
    for beams in (1, 3, 9, 81):
        found = beam_search(RandomTable(), tables, task_of(tables, 7), beams, 1, 1.0)
        scores.append(sum(of_image[0].score for of_image in found))
    assert scores == sorted(scores)
    greedy = write_step_by_step(RandomTable(), tables, task_of(tables, 7))
    assert scores[0] >= sum(of_image[0].score for of_image in greedy)


def test_n_best_are_sorted_and_an_image_does_not_depend_on_the_others():
    tables = tables_of(7, 8, 1.0)
    together = beam_search(RandomTable(), tables, task_of(tables, 7), 5, 4, 0.7)
    backwards = beam_search(RandomTable(), tables.flip(0), task_of(tables, 7), 5, 4, 0.7)[::-1]
    assert together == backwards
    for row, of_image in enumerate(together):
        (alone,) = beam_search(RandomTable(), tables[row : row + 1], task_of(tables[:1], 7), 5, 4, 0.7)
        assert alone == of_image
        assert len({one.tokens for one in of_image}) == 4
        scores = [one.score for one in of_image]
        assert scores == sorted(scores, reverse=True)


def test_rules_and_prompts_hold_in_a_beam():
    tables = tables_of(2, 5)
    first, rules = (START, 3), {"forbidden": ((4,), (3, 0)), "no_repeat_ngram": 2, "min_tokens": 4}
    found = beam_search(RandomTable(), tables, task_of(tables, 5, first, **rules), 125, 125, 1.0)

    def allowed(tokens: tuple[int, ...]) -> bool:
        whole = (*first, *tokens)
        pairs = list(itertools.pairwise(whole))
        return 4 not in tokens and (3, 0) not in pairs and len(set(pairs)) == len(pairs) and len(whole) >= 4

    for table, of_image in zip(tables, found, strict=True):
        expected = [(tokens, score) for tokens, score in all_captions(table, 5, 1.0, first) if allowed(tokens)]
        assert len(expected) > 3
        assert [one.tokens for one in of_image] == [tokens for tokens, _ in expected]
        assert [one.score for one in of_image] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_fewer_captions_than_were_asked_for():
    """One word and the end, at most three tokens: three captions, however wide the beam."""
    tables = tables_of(1, 4)
    rules = {"forbidden": ((0,), (1,))}
    (found,) = beam_search(RandomTable(), tables, task_of(tables, 3, **rules), 9, 9, 1.0)
    assert {one.tokens for one in found} == {(END,), (3, END), (3, 3)}
