"""Rules about the next token, against the logits processors of transformers and against plain loops."""

import pytest
import torch
from transformers import (
    MinLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from mmlm.evaluation.generation.logit_rules import LogitRules

END, V = 2, 9


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(40, V, generator=torch.Generator().manual_seed(0)).log_softmax(dim=1)


def read(length: int) -> torch.Tensor:
    return torch.randint(3, 7, (40, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("rules", "processor"),
    [
        (LogitRules(END, repetition_penalty=1.7), RepetitionPenaltyLogitsProcessor(1.7)),
        (LogitRules(END, repetition_penalty=0.6), RepetitionPenaltyLogitsProcessor(0.6)),
        (LogitRules(END, no_repeat_ngram=1), NoRepeatNGramLogitsProcessor(1)),
        (LogitRules(END, no_repeat_ngram=2), NoRepeatNGramLogitsProcessor(2)),
        (LogitRules(END, no_repeat_ngram=3), NoRepeatNGramLogitsProcessor(3)),
        (LogitRules(END, min_tokens=4), MinLengthLogitsProcessor(3, END)),
        (
            LogitRules(END, forbidden=((5,), (3, 4), (6, 6, 8))),
            NoBadWordsLogitsProcessor([[5], [3, 4], [6, 6, 8]], eos_token_id=[END]),
        ),
    ],
)
def test_each_rule_is_that_of_transformers(scores, rules, processor, length):
    # transformers' repetition penalty is applied to logits of both signs; log-probabilities are one such choice.
    before, tokens = scores.clone(), read(length)
    torch.testing.assert_close(rules(scores, tokens), processor(tokens, scores.clone()), atol=0, rtol=1e-6)
    assert torch.equal(scores, before)


def test_rules_act_together(scores):
    tokens = read(5)
    rules = LogitRules(END, 9, 1.3, 2, ((4,),))
    expected = scores.clone()
    for processor in (
        RepetitionPenaltyLogitsProcessor(1.3),
        NoRepeatNGramLogitsProcessor(2),
        NoBadWordsLogitsProcessor([[4]], eos_token_id=[END]),
        MinLengthLogitsProcessor(8, END),
    ):
        expected = processor(tokens, expected)
    torch.testing.assert_close(rules(scores, tokens), expected, atol=0, rtol=1e-6)


def test_where_nothing_is_left_the_caption_ends(scores):
    everything = LogitRules(END, min_tokens=9, forbidden=tuple((token,) for token in range(V) if token != END))
    found = everything(scores, read(3))
    assert torch.equal(found[:, END], scores[:, END])
    assert (found.isfinite().sum(dim=1) == 1).all()


def test_without_a_rule_nothing_changes(scores):
    assert LogitRules(END)(scores, read(3)) is scores


def test_the_penalty_does_not_depend_on_the_free_sum_of_logits(scores):
    rules = LogitRules(END, repetition_penalty=1.5)
    shifted = (scores + 7).log_softmax(dim=1)
    torch.testing.assert_close(rules(shifted, read(3)), rules(scores, read(3)))
