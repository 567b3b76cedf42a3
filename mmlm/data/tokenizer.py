"""Text to token ids and back: what every tokenizer does, what ours share, and whether two of them are the same.

With every tokenizer, padding, start and end are three ids of their own, and no text of a caption can become one of them
(except for the padding of ``OpenClip(own_padding=False)``, which shares its id with a token as in open_clip).
"""

import itertools
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mmlm.core.batch import Caption
from mmlm.core.errors import UserError


class Tokenizer(Protocol):
    """The interface of a tokenizer that the rest of the package uses."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included: every id is below it."""
        ...

    @property
    def pad_id(self) -> int:
        """The id of padding. Nobody finds padding by this id: the lengths of captions tell where it is."""
        ...

    @property
    def end_id(self) -> int:
        """The id after a caption's last token."""
        ...

    def fit(self, captions: Iterable[Caption]) -> None:
        """Called once before training: learns the vocabulary from the captions. Pretrained tokenizers do nothing."""
        ...

    def start_id(self, language: str | None) -> int:
        """The id a caption starts with. A tokenizer with one per language raises UserError for a language it lacks."""
        ...

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        """Start, tokens, end: at most ``max_tokens`` ids (at least 2). A longer text loses its tail, not the end id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` up to the first end id; padding and start ids are skipped."""
        ...

    def count_unknown(self, text: str) -> int:
        """Number of pieces of ``text`` that the vocabulary lacks and :meth:`encode` leaves out."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what :meth:`restore` needs into ``folder``, which is made if it is missing."""
        ...

    def restore(self, folder: Path) -> None:
        """Becomes the tokenizer saved in ``folder``. UserError if there is none, or one with other settings."""
        ...


def normalise_text(text: str) -> str:
    """The text in Unicode NFC, with single spaces for white space, none at the ends, and ``?`` for lone surrogates."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", whole).split())


_COMPARED = 1000
"""Number of captions, and of tokens of each, that ``same_tokens`` compares."""


def same_tokens(one: Tokenizer, other: Tokenizer, captions: Iterable[Caption]) -> bool:
    """True if an id means the same to both: equal special ids, texts of all ids and ids of the first captions."""
    if (one.vocab_size, one.pad_id, one.end_id) != (other.vocab_size, other.pad_id, other.end_id):
        return False
    if any(one.decode([i]) != other.decode([i]) for i in range(one.vocab_size)):
        return False
    for caption in itertools.islice(captions, _COMPARED):
        try:
            ids = other.encode(caption.text, caption.language, _COMPARED)
        except UserError:  # a language that it lacks
            return False
        if ids != one.encode(caption.text, caption.language, _COMPARED):
            return False
    return True


_COUNTED = 10_000
"""Number of first captions that ``describe_cut`` counts among: a second of work."""


def whole_length(tokenizer: Tokenizer, caption: Caption, enough: int = sys.maxsize) -> int:
    """Number of tokens of a caption with all that it answers, start and ends included; ``enough`` or more is enough."""
    read = [] if caption.source is None else [caption.source]
    turns = [text for turn in caption.turns for text in (turn.read, turn.written)]
    # Each text has a start of its own here, and all share one.
    return 1 + sum(len(tokenizer.encode(text, caption.language, enough)) - 1 for text in [*turns, *read, caption.text])


def describe_cut(tokenizer: Tokenizer, captions: Iterable[Caption], max_tokens: int) -> str | None:
    """How many of the first captions have more than ``max_tokens`` tokens, in words; None if none has.

    Those that are too long only with what they answer are told apart: these keep what is written.
    """
    some = list(itertools.islice(captions, _COUNTED + 1))
    counted = some[:_COUNTED]
    longer = [c for c in counted if whole_length(tokenizer, c, max_tokens + 1) > max_tokens]
    # Beside an answer stand at least the start and the end of its source.
    tails = [
        c
        for c in longer
        if c.source is None or len(tokenizer.encode(c.text, c.language, max_tokens + 1)) + 1 > max_tokens
    ]
    if not longer:
        return None
    of = f"the first {len(counted):,}" if len(some) > len(counted) else f"{len(counted):,}"
    said = []
    if tails:
        said.append(f"{len(tails):,} of {of} captions are longer than data.max_tokens={max_tokens} and lose their tail")
    if len(longer) > len(tails):
        said.append(
            f"{len(longer) - len(tails):,} of {of} captions are longer than data.max_tokens={max_tokens} with what they"
            " answer, which loses its earliest turns and then the tail of its source"
        )
    return "; ".join(said)


def frame(start: int, ids: list[int], end: int, max_tokens: int) -> list[int]:
    """Start, as many of ``ids`` as fit, end."""
    if max_tokens < 2:
        raise UserError(f"max_tokens={max_tokens} must be at least 2: a caption has a start and an end")
    return [start, *ids[: max_tokens - 2], end]


def until_end(ids: Sequence[int], end: int) -> list[int]:
    """The ids before the first ``end``, or all of them."""
    kept = [int(i) for i in ids]
    return kept[: kept.index(end)] if end in kept else kept


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps the package `tokenizers` from starting threads, unless the user has set its environment variable.

    Once it has used threads, it warns on standard error at every later fork (data workers, subprocesses).
    """
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
