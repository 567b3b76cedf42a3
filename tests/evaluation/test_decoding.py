"""Greedy decoding with a model whose every step is known: a table of transitions for each row."""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from mmlm.evaluation.decoding import greedy
from tests.evaluation.hand_made import RandomTable

PAD, START, END, OTHER_START = 0, 1, 2, 3
VOCABULARY = 12


@dataclass
class Cache:
    """What was fed so far, one int64[B, t] a call."""

    features: Tensor
    fed: list[Tensor] = field(default_factory=list)


class TransitionTable:
    """Row b reads ``features[b]`` int64[V]: the token that follows each token."""

    def __init__(self) -> None:
        self.caches: list[Cache] = []

    def start_decoding(self, features: Tensor) -> Cache:
        self.caches.append(Cache(features))
        return self.caches[-1]

    def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
        cache.fed.append(tokens)
        following = cache.features.gather(1, tokens)
        return torch.nn.functional.one_hot(following, VOCABULARY).float()


def transitions(*chains):
    """int64[B, V]: each row goes along its chain; what the chain does not say leads to a token that must not appear."""
    table = torch.full((len(chains), VOCABULARY), VOCABULARY - 1)
    for row, chain in enumerate(chains):
        for token, following in itertools.pairwise(chain):
            table[row, token] = following
    return table


def decode(table, start_ids=None, max_tokens=10):
    model = TransitionTable()
    starts = torch.full((len(table),), START) if start_ids is None else torch.tensor(start_ids)
    tokens = greedy(model, table, starts, END, PAD, max_tokens).tokens
    assert len(model.caches) == 1
    return tokens, model.caches[0].fed


def test_rows_that_end_at_different_steps():
    tokens, _ = decode(transitions([START, 4, END], [START, 5, 6, 7, END], [START, END], [START, 8, 9, END]))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[4, END, PAD, PAD], [5, 6, 7, END], [END, PAD, PAD, PAD], [8, 9, END, PAD]]


def test_a_row_does_not_depend_on_the_others():
    chains = ([START, 4, END], [START, 5, 6, 7, END], [START, 8, 9, 10, 4, 5, 6])
    together, _ = decode(transitions(*chains), max_tokens=6)
    for row, chain in enumerate(chains):
        alone, _ = decode(transitions(chain), max_tokens=6)
        assert together[row, : alone.shape[1]].tolist() == alone[0].tolist()
        assert (together[row, alone.shape[1] :] == PAD).all()


def test_each_token_is_fed_once_and_ended_rows_are_fed_padding():
    tokens, fed = decode(transitions([START, END], [START, 5, 6, END]))
    assert [step.tolist() for step in fed] == [[[START], [START]], [[END], [5]], [[PAD], [6]]]
    assert tokens.shape == (2, 3)


def test_it_stops_as_soon_as_all_rows_have_ended():
    _, fed = decode(transitions([START, 4, END], [START, 5, END]), max_tokens=1000)
    assert len(fed) == 2


def test_the_whole_caption_has_at_most_max_tokens():
    endless = transitions([START, 4, 5, 6, 4], [START, 7, END])
    tokens, fed = decode(endless, max_tokens=6)
    assert tokens.tolist() == [[4, 5, 6, 4, 5], [7, END, PAD, PAD, PAD]]
    assert len(fed) == 5  # positions 0 to 4: the last token of a caption of 6 is never fed
    shortest, _ = decode(endless, max_tokens=2)
    assert shortest.tolist() == [[4], [7]]


def test_every_row_has_its_own_start_token():
    table = transitions([START, 4, END], [OTHER_START, 5, END])
    tokens, fed = decode(table, start_ids=[START, OTHER_START])
    assert fed[0].tolist() == [[START], [OTHER_START]]
    assert tokens.tolist() == [[4, END], [5, END]]


def test_one_image():
    tokens, _ = decode(transitions([START, 4, 5, END]))
    assert tokens.tolist() == [[4, 5, END]]


def test_only_the_last_position_of_the_logits_is_read():
    class Echo(TransitionTable):
        def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
            last = super().decode(tokens, cache)
            return torch.cat([torch.full_like(last, torch.inf), last], dim=1)

    tokens = greedy(Echo(), transitions([START, 4, END]), torch.tensor([START]), END, PAD, 10).tokens
    assert tokens.tolist() == [[4, END]]


def test_an_end_token_that_is_also_padding():
    # As with GPT-2's tokenizer, which has no padding of its own.
    table = transitions([START, 4, END], [START, 5, 6, END])
    tokens = greedy(TransitionTable(), table, torch.tensor([START, START]), END, END, 10).tokens
    assert tokens.tolist() == [[4, END, END], [5, 6, END]]


def test_no_gradient_is_kept():
    class Trained(TransitionTable):
        weight = torch.nn.Parameter(torch.ones(()))

        def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
            logits = self.weight * super().decode(tokens, cache)
            assert not logits.requires_grad
            return logits

    greedy(Trained(), transitions([START, 4, END]), torch.tensor([START]), END, PAD, 10)


def test_what_does_not_fit_is_refused():
    table = transitions([START, 4, END])
    with pytest.raises(ValueError, match="max_tokens 1 must be at least 2"):
        decode(table, max_tokens=1)
    with pytest.raises(ValueError, match=r"start_ids torch.int64\[1, 1\] must be int64\[B\]"):
        decode(table, start_ids=[[START]])
    with pytest.raises(ValueError, match=r"start_ids torch.float32\[1\]"):
        decode(table, start_ids=[1.0])


def test_the_probability_of_each_token_is_told():
    table = torch.randn(3, VOCABULARY, VOCABULARY, VOCABULARY)
    table[..., END] += 1.5
    written = greedy(RandomTable(), table, torch.full((3,), START), END, PAD, 8)
    for row, tokens in enumerate(written.tokens.tolist()):
        before, last, ended = 0, START, False
        for place, (token, told) in enumerate(zip(tokens, written.log_probabilities[row].tolist(), strict=True), 1):
            logits = (table[row, before, last] * (1 + place / 10)).double()
            assert told == pytest.approx(0.0 if ended else logits.softmax(dim=0)[token].log().item(), abs=1e-6)
            before, last, ended = last, token, ended or token == END
