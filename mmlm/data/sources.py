"""What a source of examples is: map-style, with its captions listed without reading an image. One file a format."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage


class Source(Protocol):
    """A map-style data set. It is pickled once for each data worker."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at ``index`` (0 to len - 1). Raises CorruptImage if its image cannot be decoded."""
        ...

    def captions(self) -> Iterator[Caption]:
        """Every caption of every example, in order, without decoding an image."""
        ...


@runtime_checkable
class ListsTexts(Protocol):
    """A source that lists its examples without decoding an image, as all of ours do.

    What evaluators need of a split is checked by this list before training.
    """

    def texts(self) -> Iterator[ExampleTexts]:
        """Every example without its pixels, in order: those with an image that cannot be decoded too."""
        ...


@runtime_checkable
class GivesBytes(Protocol):
    """A source that has its images encoded, in files or in tables, and can give them as they are."""

    def encoded(self, index: int) -> bytes | None:
        """The encoded image of the example at ``index``, for ``decode_image``; None for text only.

        Raises CorruptImage if it cannot be read. It is not decoded: damage inside of it is not found.
        """
        ...


@runtime_checkable
class ReadsReduced(Protocol):
    """A source that can decode JPEG images at a fraction of their size, which is faster."""

    def reduced(self, index: int, at_least: int | None) -> Example:
        """As ``source[index]``, but an image may be smaller; see ``decode_image``. None: exactly as that."""
        ...


@runtime_checkable
class Wraps(Protocol):
    """A source that is made of others, and can do no more than they can: ask ``gives_bytes`` and ``has_shards``."""

    def wrapped(self) -> Sequence[Source]:
        """The others."""
        ...


def gives_bytes(source: Source) -> TypeGuard[GivesBytes]:
    """Whether a source, and all that it is made of, can give its encoded images."""
    if isinstance(source, Wraps) and not all(map(gives_bytes, source.wrapped())):
        return False
    return isinstance(source, GivesBytes)


@runtime_checkable
class NamesOrigins(Protocol):
    """A source that is made of several: a mixture."""

    def origin(self, index: int) -> str:
        """The name of the source that the example at ``index`` comes from."""
        ...


def texts_of(source: Source) -> Iterator[ExampleTexts]:
    """Every example of ``source`` without its pixels, in order.

    A source that cannot list them is read once; images that cannot be decoded are then passed over.
    """
    if isinstance(source, ListsTexts):
        yield from source.texts()
        return
    for index in range(len(source)):
        example = read_example(source, index)
        if isinstance(example, Example):
            yield ExampleTexts(example.id, example.captions, example.concept, example.image is not None)


def reduced_example(source: Source, index: int, at_least: int | None) -> Example:
    """The example, with an image that may be smaller if the source can read it so; see ``ReadsReduced``."""
    return source.reduced(index, at_least) if at_least is not None and _reads_reduced(source) else source[index]


def _reads_reduced(source: Source) -> TypeGuard[ReadsReduced]:
    return isinstance(source, ReadsReduced)


def read_example(source: Source, index: int, at_least: int | None = None) -> Example | CorruptImage:
    """The example, or the error as a value: a corrupt image is dropped from its batch and named in it.

    ``at_least``: see ``ReadsReduced``; None reads the image whole.
    """
    try:
        return reduced_example(source, index, at_least)
    except CorruptImage as error:
        return error
