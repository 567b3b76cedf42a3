"""The rules of a tokenizer, tried on captions of the run and on a few texts that are written here."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmlm.check.report import Check, expect
from mmlm.core.batch import Caption
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer, same_tokens

FITTED_TO = 2000
"""Number of captions that the tokenizer is fitted to, if there are no more."""
TRIED = 50
"""Number of those that are encoded."""
LONG = " ".join(["cat"] * 60)
"""A text that no ``MOST`` tokens hold."""
MOST = 12
"""Tokens of a caption at most."""
ENOUGH = 200
"""Tokens that hold any of the captions."""


def some_captions(source: Source) -> list[Caption]:
    """The first captions of a source."""
    return list(itertools.islice(source.captions(), FITTED_TO))


@dataclass(frozen=True)
class TokenizerUnderTest:
    """A tokenizer, and the captions that it is fitted to."""

    make: Callable[[], Tokenizer]
    """A tokenizer without a vocabulary."""
    captions: Sequence[Caption]

    @cached_property
    def fitted(self) -> Tokenizer:
        """The tokenizer, fitted once."""
        return self.fit()

    def fit(self) -> Tokenizer:
        """A new tokenizer, fitted to the captions."""
        tokenizer = self.make()
        tokenizer.fit(iter(self.captions))
        return tokenizer

    @property
    def language(self) -> str | None:
        """The language of the first caption."""
        return self.captions[0].language

    @property
    def tried(self) -> Sequence[Caption]:
        """The captions that are encoded, and one that is too long for ``MOST`` tokens."""
        return [*self.captions[:TRIED], Caption(LONG, self.language)]


def special_ids(subject: TokenizerUnderTest) -> None:
    """See ``CHECKS``."""
    tokenizer = subject.fitted
    ids = {"start": tokenizer.start_id(subject.language), "end": tokenizer.end_id, "padding": tokenizer.pad_id}
    for one, other in itertools.combinations(ids, 2):
        told = f"{one} and {other} are both {ids[one]}"
        expect(ids[one] != ids[other], told, "keep an id of its own for each (the vocabulary may grow by them)")
    for name, value in ids.items():
        right = isinstance(value, int) and 0 <= value < tokenizer.vocab_size
        told = f"the id of {name} is {value} and vocab_size is {tokenizer.vocab_size}"
        expect(right, told, "count the special ids in vocab_size")


def framed(subject: TokenizerUnderTest) -> None:
    """See ``CHECKS``."""
    tokenizer = subject.fitted
    for caption, most in itertools.product(subject.tried, (ENOUGH, MOST, 2)):
        ids = tokenizer.encode(caption.text, caption.language, most)
        where = f"'{caption.text[:20]}' in at most {most} tokens"
        expect(len(ids) <= most, f"{where} has {len(ids)}", "cut the tail off; mmlm.data.tokenizer.frame does it")
        start = tokenizer.start_id(caption.language)
        expect(bool(ids) and ids[0] == start, f"{where} begins with {ids[:1]}", f"begin with start_id, {start}")
        fix = f"end with end_id, {tokenizer.end_id}, also where the text is cut; mmlm.data.tokenizer.frame does it"
        expect(ids[-1] == tokenizer.end_id, f"{where} ends with {ids[-1]}", fix)
        inner = set(ids[1:-1])
        expect(tokenizer.end_id not in inner, f"{where} has the end id inside", "let no text become the end id")
        fix = "count every id in vocab_size: the model has that many embeddings"
        right = all(0 <= one < tokenizer.vocab_size for one in ids)
        expect(right, f"{where} has an id outside of {tokenizer.vocab_size}", fix)


def there_and_back(subject: TokenizerUnderTest) -> None:
    """See ``CHECKS``."""
    tokenizer = subject.fitted
    for caption in subject.captions[:TRIED]:
        ids = tokenizer.encode(caption.text, caption.language, ENOUGH)
        text = tokenizer.decode(ids)
        if tokenizer.count_unknown(caption.text) == 0:
            told = f"'{caption.text}' comes back as '{text}'"
            fix = "let decode give the text of the ids, without start, end and padding (case and spaces may be lost)"
            expect(_letters(text) == _letters(caption.text), told, fix)
        again = tokenizer.encode(text, caption.language, ENOUGH)
        expect(again == ids, f"'{text}' has other ids than the ids that it was decoded from", "mend encode or decode")
        padded = tokenizer.decode([*ids, tokenizer.pad_id, tokenizer.pad_id])
        expect(padded == text, f"with padding behind its end '{text}' becomes '{padded}'", "stop at the first end id")


def _letters(text: str) -> str:
    """What has to come back: letters and digits, whatever their case."""
    return "".join(letter for letter in text.casefold() if letter.isalnum() and letter.isascii())


def saved(subject: TokenizerUnderTest) -> None:
    """See ``CHECKS``."""
    fix = "write the vocabulary and all settings in save, and read them in restore"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tokenizer"
        subject.fitted.save(place)
        other = subject.make()
        other.restore(place)
    expect(same_tokens(subject.fitted, other, subject.captions[:TRIED]), "the restored one has other tokens", fix)


def fitted_alike(subject: TokenizerUnderTest) -> None:
    """See ``CHECKS``."""
    same = same_tokens(subject.fitted, subject.fit(), subject.captions[:TRIED])
    expect(same, "fitted a second time it has other tokens", "sort what a set or a count of equals gives")


CHECKS: tuple[Check[TokenizerUnderTest], ...] = (
    Check("start, end and padding are three ids below vocab_size", special_ids),
    Check("encode gives start, tokens and end, max_tokens at most", framed),
    Check("decode gives the text back", there_and_back),
    Check("saved and restored it has the same tokens", saved),
    Check("fitted twice to the same captions it has the same tokens", fitted_alike),
)
"""The rules of a tokenizer."""
