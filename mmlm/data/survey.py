"""Reads every example of a source once, in several threads, and keeps what a report about the data needs of it."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from mmlm.core.batch import Caption
from mmlm.core.errors import CorruptImage
from mmlm.core.wording import cut
from mmlm.data.look import Look, look_of
from mmlm.data.sources import Source, read_example
from mmlm.data.tokenizer import normalise_text

LONG = 10_000
"""Characters of a caption that is told of as too long to be one."""
_AHEAD = 8
"""Examples that are being read for each thread, at most: a source of any size costs no more."""


@dataclass(frozen=True)
class Surveyed:
    """What is kept of one example."""

    index: int
    id: str
    problem: str | None = None
    """Why the image cannot be read; None if it can, or if there is none."""
    size: tuple[int, int] | None = None
    """Width and height of the image."""
    look: Look | None = None
    captions: tuple[Caption, ...] = ()
    remarks: tuple[str, ...] = ()
    """What is odd about the captions, in words."""


def survey(source: Source, threads: int, tell: Callable[[int], None] = lambda done: None) -> Iterator[Surveyed]:
    """Every example of ``source``, in order. ``tell`` is called with the number of those that are done.

    Decoding an image lets other threads run, so that threads share the work without copying the source.
    """
    indices = iter(range(len(source)))
    with ThreadPoolExecutor(threads) as pool:

        def begun(index: int) -> Callable[[], Surveyed]:
            return pool.submit(_surveyed, source, index).result

        waiting = [begun(index) for index in islice(indices, threads * _AHEAD)]
        done = 0
        while waiting:
            found = waiting.pop(0)()
            waiting += [begun(index) for index in islice(indices, 1)]
            done += 1
            tell(done)
            yield found


def reason_of(problem: str) -> str:
    """A problem without what differs from file to file: its numbers, and what stands in brackets."""
    return re.sub(r"\d[\d.,]*", "N", re.sub(r"\s*\(.*\)", "", problem))


def _surveyed(source: Source, index: int) -> Surveyed:
    example = read_example(source, index)
    if isinstance(example, CorruptImage):
        return Surveyed(index, example.name, problem=example.reason)
    remarks = tuple(dict.fromkeys(remark for caption in example.captions for remark in caption_remarks(caption.text)))
    if not example.captions:
        remarks = ("has no caption",)
    if example.image is None:
        return Surveyed(index, example.id, captions=example.captions, remarks=remarks)
    height, width = example.image.shape[1:]
    return Surveyed(
        index, example.id, None, (int(width), int(height)), look_of(example.image), example.captions, remarks
    )


_SPECIAL = re.compile(r"<\|[a-z_]+\|>|</?s>|\[(?:CLS|SEP|PAD|MASK|UNK)\]")
"""What the special tokens of well-known tokenizers look like."""


def caption_remarks(text: str) -> Iterator[str]:
    """What is odd about a caption, in words: nothing of it ends a training."""
    if not normalise_text(text):
        yield "a caption is blank"
    if len(text) > LONG:
        yield f"a caption has more than {LONG:,} characters"
    if any(unicodedata.category(c) == "Cc" and not c.isspace() for c in text):
        yield "a caption has control characters"
    if "\N{REPLACEMENT CHARACTER}" in text:
        yield "a caption has a character that was lost in another encoding"
    if found := _SPECIAL.search(text):
        yield f"a caption spells a special token, such as {cut(found[0], 20)}"
