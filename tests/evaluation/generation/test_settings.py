"""Settings that cannot be are refused in one line that says what to do."""

import re

import pytest

from mmlm.core.errors import ArgumentError
from mmlm.evaluation.generation.settings import GenerationSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams: 0 must be at least 1"),
        ({"n": 0}, "n: 0 must be at least 1"),
        ({"top_k": 0}, "top_k: 0 must be at least 1"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram: 0 must be at least 1"),
        ({"temperature": 0.0}, "temperature: 0 must be above 0; leave it out for the most probable token"),
        ({"temperature": -1.0}, "temperature: -1.0 must be above 0"),
        ({"temperature": float("nan")}, "temperature: nan must be above 0"),
        ({"top_p": 0.0}, "top_p: 0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p: 1.5 must be above 0 and at most 1"),
        ({"min_p": 1.1}, "min_p: 1.1 must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 must be above 0"),
        ({"min_tokens": 1}, "min_tokens: 1 must be at least 2"),
        ({"max_tokens": 1}, "max_tokens: 1 must be at least 2"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens: 9 must be at most max_tokens=8"),
        ({"length_penalty": float("inf"), "beams": 2}, "length_penalty: inf must be finite"),
        ({"length_penalty": 1.0}, "length_penalty: 1.0 does nothing for a greedy caption; set beams"),
        ({"beams": 4, "temperature": 0.8}, "beams: 4 and temperature=0.8 exclude each other: a beam draws nothing"),
        ({"beams": 4, "top_p": 0.8}, "beams: 4 and top_p=0.8 exclude each other"),
        ({"n": 3}, "n: 3 captions need beams=3 or a temperature; greedy writes one"),
        ({"n": 3, "beams": 2}, "n: 3 must be at most beams=2; set beams=3"),
        ({"rerank": 3, "beams": 2}, "rerank: 3 must be at most beams=2; set beams=3"),
        ({"rerank": 2, "n": 3, "beams": 4}, "rerank: 2 must be at least n=3"),
        ({"rerank": 2}, "rerank: 2 captions need beams=2 or a temperature; greedy writes one"),
        ({"forbidden": ["a", " "]}, "forbidden: an empty text is in every caption"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ArgumentError, match=re.escape(message)) as error:
        GenerationSettings(**settings)
    assert "\n" not in str(error.value)


def test_the_kinds_of_decoding():
    assert GenerationSettings().is_greedy
    assert not GenerationSettings(beams=2).is_greedy
    assert GenerationSettings(min_p=0.1).is_sampled
    assert GenerationSettings(top_k=3, n=9).candidates == 9
    assert GenerationSettings(beams=6, rerank=6, n=2).candidates == 6
    assert GenerationSettings(beams=2).length_power == 1
    assert GenerationSettings(beams=2, length_penalty=0).length_power == 0
