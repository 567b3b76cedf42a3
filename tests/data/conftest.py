"""A tokenizer that knows the captions of the small pictures."""

import pytest

from mmlm.data.tokenizer import BytePair
from tests.data.pictures import Pictures


@pytest.fixture(scope="module")
def tokenizer() -> BytePair:
    tokenizer = BytePair(vocab_size=320, languages=("en", "de"))
    tokenizer.fit(Pictures(20).captions())
    return tokenizer
