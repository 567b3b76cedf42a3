"""A beam: wide enough, it finds the most probable of all captions; and no image changes the result of another."""

import pytest
import torch
from torch import Tensor

from mmlm.evaluation.decoding import greedy
from mmlm.evaluation.n_best import n_best
from tests.evaluation.hand_made import RandomTable

PAD, START, END = 0, 1, 2


def all_captions(table: Tensor, max_tokens: int) -> list[tuple[tuple[int, ...], float]]:
    """Every caption of up to ``max_tokens`` and its log-probability, the most probable first."""
    finished, live = [], [((START,), 0.0)]
    for _ in range(max_tokens - 1):
        longer = []
        for prefix, total in live:
            before = prefix[-2] if len(prefix) > 1 else 0
            terms = (table[before, prefix[-1]] * (1 + len(prefix) / 10)).double().log_softmax(dim=0).tolist()
            longer += [((*prefix, token), total + term) for token, term in enumerate(terms)]
        finished += [one for one in longer if one[0][-1] == END]
        live = [one for one in longer if one[0][-1] != END]
    return sorted([(prefix[1:], total) for prefix, total in [*finished, *live]], key=lambda one: -one[1])


@pytest.mark.parametrize("likely_end", [-2.0, 0.0, 3.0])
def test_a_wide_beam_finds_the_most_probable_of_all_captions(likely_end):
    tables = torch.randn(2, 5, 5, 5)
    tables[..., END] += likely_end
    starts = torch.full((2,), START)
    for max_tokens, count in ((2, 9), (4, 40), (5, 200)):
        found = n_best(RandomTable(), tables, starts, END, max_tokens, count)
        for table, of_image in zip(tables, found, strict=True):
            expected = all_captions(table, max_tokens)[:count]
            assert [one.tokens for one in of_image] == [tokens for tokens, _ in expected]
            totals = [total for _, total in expected]
            assert [one.log_probability for one in of_image] == pytest.approx(totals, abs=1e-6)


def test_a_beam_is_no_worse_than_greedy_and_an_image_does_not_depend_on_the_others():
    tables = torch.randn(4, 8, 8, 8)
    starts = torch.full((4,), START)
    written = greedy(RandomTable(), tables, starts, END, PAD, 7)
    ones = n_best(RandomTable(), tables, starts, END, 7, 1)
    for (best,), total in zip(ones, written.log_probabilities.sum(dim=1).tolist(), strict=True):
        assert best.log_probability >= total - 1e-9
    together = n_best(RandomTable(), tables, starts, END, 7, 3)
    for row, of_image in enumerate(together):
        (alone,) = n_best(RandomTable(), tables[row : row + 1], starts[:1], END, 7, 3)
        assert alone == of_image
        assert len(of_image) == 3
