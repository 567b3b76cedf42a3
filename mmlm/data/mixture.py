"""Several sources as one, in fixed proportions: what is trained on stays a function of one position."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate

from mmlm.core.errors import UserError
from mmlm.core.flow import Caption, Example
from mmlm.core.wording import did_you_mean
from mmlm.data.sources import Source


class Mixture:
    """One epoch has every example of every source, ``passes`` times.

    The loader's shuffle runs over all of it, so that a batch holds the sources in proportion on average, and a run that
    is stopped goes on at the same example as with a single source. A repeated example keeps its id and concept, so that
    it is a positive of itself, and is augmented differently each time. Ids are ``<source>/<id>``; equal concepts of
    different sources are positives. The proportions are the same in every epoch, other than where sources are drawn at
    random (as `WeightedRandomSampler` of torch does), which leaves examples out and repeats others.
    """

    def __init__(self, sources: Mapping[str, Source], passes: Mapping[str, int] | None = None) -> None:
        """``sources`` by name; ``passes`` of each in an epoch, 1 of those that are not named. Raises UserError."""
        if not sources:
            raise UserError("sources: a mixture needs one at least")
        times = dict.fromkeys(sources, 1) | dict(passes or {})
        for name, count in times.items():
            if name not in sources:
                raise UserError(f"passes.{name}: the mixture has no such source{did_you_mean(name, list(sources))}")
            if count < 1:
                raise UserError(f"passes.{name}: {count} must be at least 1; leave the source out instead")
        self._turns = [(name, source) for name, source in sources.items() for _ in range(times[name])]
        self._ends = list(accumulate(len(source) for _, source in self._turns))

    def __len__(self) -> int:
        """Examples of an epoch, repeated ones each time."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """See :class:`mmlm.data.sources.Source`. Raises IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is none of the mixture's {len(self)} examples")
        turn = bisect_right(self._ends, index)
        name, source = self._turns[turn]
        example = source[index - (self._ends[turn - 1] if turn else 0)]
        return replace(example, id=f"{name}/{example.id}")

    def captions(self) -> Iterator[Caption]:
        """See :class:`mmlm.data.sources.Source`; those of repeated examples are repeated."""
        for _, source in self._turns:
            yield from source.captions()
