"""The rules of a source of examples."""

import itertools
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from mmlm.check.report import Check, expect
from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage
from mmlm.data.images import decode_image
from mmlm.data.order import has_shards
from mmlm.data.sources import ListsTexts, Source, gives_bytes, read_example

READ = 24
"""Number of examples that are read, spread over the source."""
LISTED = 50
"""Number of first examples whose captions are compared with what ``captions`` lists, if there are no more."""


@dataclass(frozen=True)
class SourceUnderTest:
    """A source, and how it is opened."""

    make: Callable[[], Source]

    @cached_property
    def source(self) -> Source:
        """The source, opened once."""
        return self.make()

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the examples that are read: the first two, the last, and others in between."""
        size = len(self.source)
        spread = {size * place // READ for place in range(READ)} | {0, 1, size - 1}
        return tuple(sorted(row for row in spread if 0 <= row < size))

    @cached_property
    def read(self) -> dict[int, Example | CorruptImage]:
        """The examples of ``rows``."""
        return {row: read_example(self.source, row) for row in self.rows}

    @property
    def examples(self) -> dict[int, Example]:
        """Those that could be decoded."""
        return {row: example for row, example in self.read.items() if isinstance(example, Example)}


def length(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    size = len(subject.source)
    expect(size > 0, "len is 0", "raise a UserError in the constructor that says where examples were looked for")


def fields(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    for row, example in subject.read.items():
        if isinstance(example, CorruptImage):
            continue
        where = f"example {row}"
        expect(isinstance(example, Example), f"{where} is a {type(example).__name__}", "return an Example")
        fix = "give every example an id that is the same in every run, such as its path or key"
        expect(isinstance(example.id, str) and example.id != "", f"the id of {where} is {example.id!r}", fix)
        image = example.image
        if image is not None:
            right = isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3
            right = right and image.shape[0] == 3 and min(image.shape) > 0
            shown = f"{image.dtype}{list(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
            expect(right, f"the image of {where} is {shown}", "return uint8[3, H, W] in RGB (mmlm.data.images)")
        right = isinstance(example.captions, tuple) and all(isinstance(one, Caption) for one in example.captions)
        expect(right, f"the captions of {where} are no tuple of Caption", "write (Caption(text, language), ...)")
        told = [one for one in example.captions if not isinstance(one.text, str)]
        expect(not told, f"a caption of {where} is no text", "decode bytes, and leave out what is missing")
        right = isinstance(example.concept, str | None)
        expect(right, f"the concept of {where} is {example.concept!r}", "make it a string or None")


def _same(one: Example | CorruptImage, other: Example | CorruptImage) -> bool:
    if isinstance(one, CorruptImage) or isinstance(other, CorruptImage):
        return str(one) == str(other)
    plain = (one.id, one.captions, one.concept) == (other.id, other.captions, other.concept)
    if one.image is None or other.image is None:
        return plain and one.image is other.image
    return plain and torch.equal(one.image, other.image)


def read_twice(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    fix = "let an example depend on its number alone: draw nothing, keep no place; augmentation is the transform's"
    for row in reversed(subject.rows):
        again = read_example(subject.source, row)
        expect(_same(subject.read[row], again), f"example {row} is another one the second time", fix)


def ids(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    seen: dict[str, tuple[int, Example]] = {}
    for row, example in subject.examples.items():
        if example.id in seen:
            before, other = seen[example.id]
            fix = "make the id unique, with a counter or the path: it is the key of all randomness about the example"
            told = f"examples {before} and {row} are different and have the id '{example.id}'"
            expect(_same(example, other), told, fix)
        seen[example.id] = (row, example)


def captions(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    source, count = subject.source, min(len(subject.source), LISTED)
    listed = iter(source.captions())
    for row in range(count):
        example = read_example(source, row)
        if isinstance(example, CorruptImage):
            return  # its captions are listed, and nobody knows how many there are
        found = tuple(itertools.islice(listed, len(example.captions)))
        fix = "yield every caption of every example, in the order of the examples"
        expect(found == example.captions, f"captions() gives {_texts(found)} where example {row} has others", fix)
    if count == len(source):
        left = next(listed, None)
        expect(left is None, "captions() goes on after the last example", "yield the captions of the examples only")


def texts(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    if not isinstance(subject.source, ListsTexts):
        return
    fix = "yield id, captions, concept and whether there is an image of every example, in their order"
    listed = list(subject.source.texts())
    expect(len(listed) == len(subject.source), f"texts() lists {len(listed)} examples", fix)
    for row, example in subject.examples.items():
        wanted = ExampleTexts(example.id, example.captions, example.concept, example.image is not None)
        expect(listed[row] == wanted, f"texts() gives {listed[row]} for example {row}, '{example.id}'", fix)


def encoded(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    if not gives_bytes(subject.source):
        return
    for row, example in subject.examples.items():
        data = subject.source.encoded(row)
        image = None if data is None else decode_image(data, example.id)
        same = (image is None) is (example.image is None)
        same = same and (image is None or example.image is None or torch.equal(image, example.image))
        expect(
            same, f"encoded({row}) is another image than [{row}] has", "give the bytes that the image is decoded from"
        )


def shard_sizes(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    source = subject.source
    if has_shards(source):
        count, size = sum(source.shard_sizes()), len(subject.source)
        expect(
            count == size, f"shard_sizes() adds up to {count}, and len is {size}", "count the examples of each shard"
        )


def _texts(found: Iterable[Caption]) -> str:
    return ", ".join(repr(caption.text) for caption in itertools.islice(found, 2)) or "nothing"


def pickled(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    fix = "hold paths and settings, open files when they are read, or write __reduce__ (see ParquetTable)"
    try:
        copy = pickle.loads(pickle.dumps(subject.source))
    except Exception as error:
        expect(False, f"pickle raised {type(error).__name__}: {error}", fix)
        raise
    expect(len(copy) == len(subject.source), f"a pickled copy has {len(copy)} examples", fix)
    row = subject.rows[-1]
    expect(_same(read_example(copy, row), subject.read[row]), f"example {row} of a pickled copy is another one", fix)


def opened_twice(subject: SourceUnderTest) -> None:
    """See ``CHECKS``."""
    again = subject.make()
    fix = "sort what a folder or a set gives: its order differs from machine to machine"
    expect(len(again) == len(subject.source), f"it has {len(again)} examples, and had {len(subject.source)}", fix)
    row = subject.rows[-1]
    expect(_same(read_example(again, row), subject.read[row]), f"example {row} is another one", fix)


CHECKS: tuple[Check[SourceUnderTest], ...] = (
    Check("it has an example at least", length),
    Check("an example has an id, an image uint8[3, H, W] or None, a tuple of captions, a concept or None", fields),
    Check("the same number gives the same example, in whatever order they are read", read_twice),
    Check("different examples have different ids", ids),
    Check("captions() lists the captions of all examples in order", captions),
    Check("texts() lists all examples without their pixels, in order", texts),
    Check("encoded(), where there is one, gives the bytes that an image is decoded from", encoded),
    Check("shard_sizes(), where there is one, adds up to the number of examples", shard_sizes),
    Check("a pickled copy, which a data worker gets, has the same examples", pickled),
    Check("opened a second time it has the same examples", opened_twice),
)
"""The rules of a source."""
