"""Tokenizers of few captions."""

import pytest

from mmlm.data.tokenizers.byte_pair import BytePair
from tests.data.captions import CAPTIONS
from tests.data.pictures import Pictures


@pytest.fixture(scope="module")
def tokenizer() -> BytePair:
    """Knows the captions of the small pictures."""
    tokenizer = BytePair(vocab_size=320, languages=("en", "de"))
    tokenizer.fit(Pictures(20).captions())
    return tokenizer


@pytest.fixture(scope="module")
def byte_pair() -> BytePair:
    """Knows ``CAPTIONS``."""
    tokenizer = BytePair(vocab_size=300, languages=("en", "de"))
    tokenizer.fit(CAPTIONS)
    return tokenizer
