"""Several sources as one, in fixed proportions: the example is still a function of one position."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError
from mmlm.core.wording import did_you_mean
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import Source, texts_of


class Mixture:
    """A source whose epoch has every example of every source, ``passes`` times.

    The loader shuffles all of them together, so that a batch holds the sources in proportion on average, and a run that
    is stopped goes on at the same example as with a single source. A repeated example keeps its id and concept, so that
    it is a positive of itself, and each repetition is augmented differently. Ids are ``<source>/<id>``; equal concepts
    of different sources are positives. The proportions are the same in every epoch, unlike with sources drawn at random
    (as torch's `WeightedRandomSampler` does), which leaves examples out and repeats others.
    """

    def __init__(self, sources: Mapping[str, Source], passes: Mapping[str, int] | None = None) -> None:
        """``sources`` by name; ``passes`` says how often each comes in an epoch, once if it is not named.

        Raises UserError for no source, an unknown name, or fewer passes than 1.
        """
        if not sources:
            raise ArgumentError("sources: a mixture needs one at least")
        times = dict.fromkeys(sources, 1) | dict(passes or {})
        for name, count in times.items():
            if name not in sources:
                raise ArgumentError(f"passes.{name}: the mixture has no such source{did_you_mean(name, list(sources))}")
            if count < 1:
                raise ArgumentError(f"passes.{name}: {count} must be at least 1; leave the source out instead")
        self._turns = [(name, source) for name, source in sources.items() for _ in range(times[name])]
        self._ends = list(accumulate(len(source) for _, source in self._turns))

    def __len__(self) -> int:
        """Number of examples of an epoch; a repeated example counts each time."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """See :class:`mmlm.data.sources.Source`. Raises IndexError beyond the last example."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is none of the mixture's {len(self)} examples")
        # A turn is one pass of one source; _ends[turn] is the number of examples up to its end.
        turn = bisect_right(self._ends, index)
        name, source = self._turns[turn]
        example = source[index - (self._ends[turn - 1] if turn else 0)]
        return replace(example, id=f"{name}/{example.id}")

    def captions(self) -> Iterator[Caption]:
        """See :class:`mmlm.data.sources.Source`; the captions of repeated examples are repeated."""
        for _, source in self._turns:
            yield from source.captions()

    def remarks(self) -> Iterator[str]:
        """See :class:`mmlm.data.remarks.HasRemarks`; each names its source, once."""
        for name, source in dict(self._turns).items():
            yield from (f"{name}: {remark}" for remark in remarks_of(source))

    def texts(self) -> Iterator[ExampleTexts]:
        """See :class:`mmlm.data.sources.ListsTexts`; repeated examples are repeated."""
        for name, source in self._turns:
            for example in texts_of(source):
                yield replace(example, id=f"{name}/{example.id}")
