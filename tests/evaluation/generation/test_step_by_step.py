"""Greedy captions and samples with a model whose every step is known: a table of transitions for each image."""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from mmlm.evaluation.generation.generate import generate
from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.evaluation.generation.sampling import Sampling
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.generation.step_by_step import write_step_by_step
from mmlm.evaluation.generation.task import Task
from tests.evaluation.hand_made import RandomTable

PAD, START, END = 0, 1, 2
VOCABULARY = 12


@dataclass
class Cache:
    """What was fed so far, one int64[B, t] a call."""

    features: Tensor
    room: int | None
    fed: list[Tensor] = field(default_factory=list)

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        raise AssertionError("only a beam moves captions")

    def keep_images(self, images: Tensor) -> None:
        self.features = self.features[images]


class TransitionTable:
    """Row b reads ``features[b]`` int64[V]: the token that follows each token."""

    def __init__(self) -> None:
        self.caches: list[Cache] = []

    def start_decoding(self, features: Tensor, room: int | None = None) -> Cache:
        self.caches.append(Cache(features, room))
        return self.caches[-1]

    def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
        cache.fed.append(tokens)
        following = cache.features.gather(1, tokens)
        return 9 * torch.nn.functional.one_hot(following, VOCABULARY).float()


def transitions(*chains):
    """int64[B, V]: each row goes along its chain; what the chain does not say leads to a token that must not appear."""
    table = torch.full((len(chains), VOCABULARY), VOCABULARY - 1)
    for row, chain in enumerate(chains):
        for token, following in itertools.pairwise(chain):
            table[row, token] = following
    return table


def task_of(table: Tensor, max_tokens: int = 10, first: tuple[int, ...] = (START,), **rules: object) -> Task:
    return Task(torch.arange(len(table)), first, END, max_tokens, LogitRules(END, **rules))


def greedy(table: Tensor, max_tokens: int = 10, model=None, **rules: object):
    """The tokens of each caption, and what was fed."""
    model = TransitionTable() if model is None else model
    found = write_step_by_step(model, table, task_of(table, max_tokens, **rules))
    assert len(model.caches) == 1
    assert model.caches[0].room == max_tokens - 1
    return [list(of_image[0].tokens) for of_image in found], model.caches[0].fed


def test_each_caption_stops_for_itself_and_each_token_is_fed_once():
    table = transitions([START, 4, END], [START, 5, 6, 7, END], [START, END], [START, 8, 9, END])
    tokens, fed = greedy(table)
    assert tokens == [[4, END], [5, 6, 7, END], [END], [8, 9, END]]
    # Once half of the images are through, they leave; what was left behind is fed its end until then.
    assert [step.flatten().tolist() for step in fed] == [[START] * 4, [4, 5, END, 8], [6, 9], [7]]


def test_a_caption_does_not_depend_on_the_others():
    chains = ([START, 4, END], [START, 5, 6, 7, END], [START, 8, 9, 10, 4, 5, 6])
    together, _ = greedy(transitions(*chains), 6)
    for row, chain in enumerate(chains):
        assert greedy(transitions(chain), 6)[0] == [together[row]]


def test_the_whole_caption_has_at_most_max_tokens():
    endless = transitions([START, 4, 5, 6, 4], [START, 7, END])
    tokens, fed = greedy(endless, 6)
    assert tokens == [[4, 5, 6, 4, 5], [7, END]]
    assert len(fed) == 5  # positions 0 to 4: the last token of a caption of 6 is never fed
    assert greedy(endless, 2)[0] == [[4], [7]]
    assert len(greedy(transitions([START, 4, END], [START, 5, END]), 1000)[1]) == 2


def test_a_prompt_is_read_at_once_and_not_repeated():
    table = transitions([START, 9, 9], [4, 5, 6, END])
    model = TransitionTable()
    found = write_step_by_step(model, table[1:], task_of(table[1:], 5, (START, 3, 4)))
    assert found[0][0].tokens == (5, 6)
    assert [step.tolist() for step in model.caches[0].fed] == [[[START, 3, 4]], [[5]]]


def test_only_the_last_position_of_the_logits_is_read():
    class Echo(TransitionTable):
        def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
            last = super().decode(tokens, cache)
            return torch.cat([torch.full_like(last, torch.inf), last], dim=1)

    assert greedy(transitions([START, 4, END]), model=Echo())[0] == [[4, END]]


def test_no_gradient_is_kept():
    class Trained(TransitionTable):
        weight = torch.nn.Parameter(torch.ones(()))

        def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
            logits = self.weight * super().decode(tokens, cache)
            assert not logits.requires_grad
            return logits

    greedy(transitions([START, 4, END]), model=Trained())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 first tokens must be 1 or more, and fewer than 1"):
        task_of(torch.zeros(1), 1)
    with pytest.raises(ValueError, match="3 first tokens"):
        task_of(torch.zeros(1), 3, (START, 3, 4))


def random_table(count: int) -> Tensor:
    table = torch.randn(count, VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
    table[..., END] += 1.5
    return table


def test_the_probability_of_each_token_is_told():
    """The model's own, whatever rules and temperature: the score is that under the rules."""
    table = random_table(3)
    plain = write_step_by_step(RandomTable(), table, task_of(table, 8))
    sampled = write_step_by_step(
        RandomTable(), table, task_of(table, 8, min_tokens=6), 4, Sampling(0, 3.0, top_k=5), 0.5
    )
    for row, written in [*enumerate(plain), *enumerate(sampled)]:
        for one in written:
            before, last = 0, START
            for place, (token, told) in enumerate(zip(one.tokens, one.log_probabilities, strict=True), 1):
                logits = (table[row, before, last] * (1 + place / 10)).double()
                assert told == pytest.approx(logits.log_softmax(dim=0)[token].item(), abs=1e-5)
                before, last = last, token
            power = 1.0 if len(written) == 1 else 0.5
            assert one.score == pytest.approx(one.log_probability / len(one.tokens) ** power, abs=1e-5)
    assert min(len(one.tokens) for of_image in sampled for one in of_image) >= 5


def test_samples_depend_on_seed_image_and_number_alone():
    table, keys = random_table(6), torch.tensor([3, 1, 4, 15, 92, 65])

    def samples(rows: list[int], n: int, seed: int = 0):
        task = Task(keys[rows], (START,), END, 9, LogitRules(END))
        settings = GenerationSettings(temperature=1.3, n=n, seed=seed)
        return generate(RandomTable(), table[rows], task, settings)

    whole = samples([0, 1, 2, 3, 4, 5], 5)
    for of_image in whole:
        scores = [one.score for one in of_image]
        assert scores == sorted(scores, reverse=True)
    assert samples([5, 3, 1], 5) == [whole[5], whole[3], whole[1]]
    assert samples([2], 5) == [whole[2]]
    assert set(samples([2], 2)[0]) <= set(whole[2])
    assert samples([2], 5, seed=1) != [whole[2]]
    assert len({one.tokens for of_image in whole for one in of_image}) > 12


def test_no_images():
    assert generate(RandomTable(), torch.zeros(0, 4, 4, 4), task_of(torch.zeros(0)), GenerationSettings()) == []
