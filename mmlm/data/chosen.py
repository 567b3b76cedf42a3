"""Some of the examples of a source, in its order."""

from collections.abc import Iterator, Sequence

import numpy as np

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.data.order import has_shards
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import Source, gives_bytes, reduced_example, texts_of


class Chosen:
    """The examples of ``source`` at int64[K] ``kept``, which goes up. It has shards and encoded images if they do."""

    def __init__(self, source: Source, kept: np.ndarray) -> None:
        self._source, self._kept = source, kept

    def wrapped(self) -> Sequence[Source]:
        """See ``mmlm.data.sources.Wraps``."""
        return (self._source,)

    def __len__(self) -> int:
        """Number of examples that are kept."""
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``ReadsReduced``."""
        return reduced_example(self._source, int(self._kept[index]), at_least)

    def encoded(self, index: int) -> bytes | None:
        """See ``mmlm.data.sources.GivesBytes``."""
        assert gives_bytes(self._source)
        return self._source.encoded(int(self._kept[index]))

    def shard_sizes(self) -> Sequence[int]:
        """See ``mmlm.data.order.Sharded``: what is left of each shard."""
        assert has_shards(self._source)
        ends = np.cumsum(self._source.shard_sizes())
        return np.diff(np.searchsorted(self._kept, ends), prepend=0).tolist()

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (caption for texts in self.texts() for caption in texts.captions)

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``mmlm.data.sources.ListsTexts``."""
        wanted = np.zeros(len(self._source), dtype=bool)
        wanted[self._kept] = True
        return (texts for texts, is_wanted in zip(texts_of(self._source), wanted, strict=True) if is_wanted)

    def remarks(self) -> Iterator[str]:
        """See ``mmlm.data.remarks.HasRemarks``."""
        return iter(remarks_of(self._source))
