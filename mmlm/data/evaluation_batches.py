"""The batches of a split that is evaluated: every example once, in order, as it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from mmlm.core.batch import Batch, Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.attributes import Attributes, attributes_of
from mmlm.data.caption_choice import CaptionSettings
from mmlm.data.collate import DEFAULT_BUCKET, caption_encoder, collate, prepare
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import ListsTexts, Source, read_example, reduced_example, texts_of
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform


@dataclass(frozen=True)
class _Spaced:
    """Every n-th example of a source, beginning with the first."""

    source: Source
    every: int
    """n."""

    def __len__(self) -> int:
        return -(-len(self.source) // max(1, self.every))

    def __getitem__(self, index: int) -> Example:
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``ReadsReduced``."""
        return reduced_example(self.source, index * self.every, at_least)

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        raise NotImplementedError("a split's captions come with its batches")

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        return islice(texts_of(self.source), 0, None, max(1, self.every))


class EvaluationBatches:
    """Every example of a source once, in order, with all of its captions and without augmentation.

    A sequence of batches. A batch is read when it is asked for, so that a rank decodes only the batches that it takes.
    An image that cannot be decoded is left out and named in its batch's ``corrupt``.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        transform: Transform,
        batch_size: int,
        max_tokens: int,
        bucket: int = DEFAULT_BUCKET,
        choice: CaptionSettings | None = None,
    ) -> None:
        """``batch_size`` is in examples; the last batch may be smaller. ``choice`` names texts that are no captions."""
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self.corrupt: tuple[str, ...] = ()
        """``id: reason`` of every image that the last evaluation left out, on any rank; the evaluation sets it."""
        self.source = source
        """The examples."""
        self._tokenizer = tokenizer
        self._transform = transform
        self._batch_size = batch_size
        self._pad_id = tokenizer.pad_id
        self._max_tokens = max_tokens
        self._bucket = bucket
        self._choice = choice or CaptionSettings()
        self._encode = caption_encoder(tokenizer, max_tokens)

    @property
    def origin(self) -> Source:
        """Where the examples are from: a source that has them all, and maybe others."""
        return self.source.source if isinstance(self.source, _Spaced) else self.source

    @property
    def decoding(self) -> str | None:
        """How images are decoded, in words; None for whole, by any decoder: all of them give equal pixels."""
        least = self._transform.at_least
        return None if least is None else f"JPEG at a fraction of its size, at least {least} pixels a side"

    @property
    def num_examples(self) -> int:
        """Number of examples of the source, including those that cannot be decoded."""
        return len(self.source)

    @property
    def lists_texts(self) -> bool:
        """Whether ``texts`` decodes no image."""
        return isinstance(self.source, ListsTexts)

    def texts(self) -> Iterator[ExampleTexts]:
        """Every example without its pixels, in order, without decoding an image (see ``texts_of``)."""
        if self._choice.negatives is None:
            return texts_of(self.source)
        return (replace(texts, captions=self._true(texts.captions)) for texts in texts_of(self.source))

    def _true(self, captions: Sequence[Caption]) -> tuple[Caption, ...]:
        """The captions without texts that are false of their image."""
        return tuple(caption for caption in captions if not self._choice.is_negative(caption))

    def _read(self, index: int) -> Example | CorruptImage:
        example = read_example(self.source, index, self._transform.at_least)
        if self._choice.negatives is None or isinstance(example, CorruptImage):
            return example
        return replace(example, captions=self._true(example.captions))

    def attributes(self) -> Attributes:
        """What is known of the examples besides their captions (see ``attributes_of``)."""
        return attributes_of(self.source)

    def remarks(self) -> list[str]:
        """What the source finds odd about its examples."""
        return remarks_of(self.source)

    def sample(self) -> "EvaluationBatches":
        """One batch of its examples, evenly spaced over all of them, as a split of its own."""
        some = _Spaced(self.source, -(-len(self.source) // self._batch_size))
        return EvaluationBatches(
            some, self._tokenizer, self._transform, self._batch_size, self._max_tokens, self._bucket, self._choice
        )

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.source) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Batch ``number``, in the source's order. It is empty if none of its examples can be decoded.

        Raises IndexError beyond the last batch, which also ends an iteration.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} is none of the split's {len(self)}")
        start = number * self._batch_size
        indices = range(start, min(start + self._batch_size, len(self.source)))
        prepared = prepare((self._read(index) for index in indices), self._transform, None)
        return collate(prepared, self._encode, self._pad_id, self._max_tokens, self._bucket)
