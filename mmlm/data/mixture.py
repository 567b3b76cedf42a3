"""Several sources as one, in fixed proportions: the example is still a function of one position."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_random import keyed_integer, keyed_order, stable_hash, stream
from mmlm.data.mixture_windows import MixtureWindows
from mmlm.data.remarks import remarks_of
from mmlm.data.shares import by_passes, by_weights, temperature_weights
from mmlm.data.sources import Source, gives_bytes, reduced_example, texts_of

_PASSES = stream("mmlm.data.mixture.passes")


class Mixture:
    """A source whose epoch has a fixed number of examples of each of several sources.

    By default these are whole passes: every example of every source, ``passes`` times. With ``weights``, or a
    ``temperature``, an epoch has as many examples of a source as its weight says; where that is no whole number of
    passes, the next epoch goes on where this one stopped, so that no example comes again before all others of its
    source have come. The proportions are the same in every epoch, unlike with sources drawn at random (as torch's
    `WeightedRandomSampler` does), which leaves examples out and repeats others.

    It has encoded images if all sources have, and takes part in an order by windows of shards if one has shards
    (``mmlm/data/mixture_windows.py``).

    The loader shuffles all of them together, so that a batch holds the sources in proportion on average, and a run that
    is stopped goes on at the same example as with a single source. A repeated example keeps its id and concept, so that
    it is a positive of itself, and each repetition is augmented differently. Ids are ``<source>/<id>``; equal concepts
    of different sources are positives.

    An index counts through the sources, and through as many turns of each as an epoch may have a part of. Captions and
    texts are listed so too.

    Args:
        sources: the sources by name.
        passes: how often each comes in an epoch, once if it is not named.
        weights: the share of an epoch of each, in proportion; all have to be named. Without ``passes``.
        temperature: in place of weights, each source's size ** (1 / temperature). Without ``passes``.
        examples: of an epoch, with weights or a temperature; null is as many as all sources have.
        most_passes: the most passes of a source in an epoch, with weights or a temperature; null for no limit.

    Raises:
        ArgumentError: no source, a name that is none, numbers out of their range, or arguments that exclude each other.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        passes: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | None = None,
        temperature: float | None = None,
        examples: int | None = None,
        most_passes: float | None = None,
    ) -> None:
        if not sources:
            raise ArgumentError("sources: a mixture needs one at least")
        ways = {"passes": passes, "weights": weights, "temperature": temperature}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ArgumentError(f"{given[1]}: excludes {given[0]}; set {given[0]}=null, or leave {given[1]} out")
        sizes = {name: len(source) for name, source in sources.items()}
        if temperature is not None:
            weights = temperature_weights(sizes, temperature)
        if weights is not None:
            self._shares = by_weights(sizes, weights, examples, most_passes)
        else:
            for name, value in (("examples", examples), ("most_passes", most_passes)):
                if value is not None:
                    raise ArgumentError(f"{name}: goes with weights or a temperature")
            self._shares = by_passes(sizes, passes or {})
        self._sources = dict(sources)
        self._turns = [(name, source) for name, source in sources.items() for _ in range(self._shares[name].turns)]
        self._ends = list(accumulate(len(source) for _, source in self._turns))

    def __len__(self) -> int:
        """Number of indices; a repeated example counts each time."""
        return self._ends[-1]

    @property
    def examples_per_epoch(self) -> int:
        """See :class:`mmlm.data.order.DrawsEpochs`."""
        return sum(share.count for share in self._shares.values())

    def drawn(self, seed: int, epoch: int, places: Tensor) -> Tensor:
        """See :class:`mmlm.data.order.DrawsEpochs`."""
        indices = torch.empty_like(places)
        first_place = first_index = 0
        for name, share in self._shares.items():
            own = (places >= first_place) & (places < first_place + share.count)
            # Counted from the first epoch on, the source is read in passes, each in an order of its own.
            begin = epoch * share.count
            positions = places[own] - first_place + begin
            passes, rows = positions // share.size, positions % share.size
            for number in passes.unique().tolist():
                key = keyed_integer(stable_hash(name), number)
                of_pass = passes == number
                rows[of_pass] = keyed_order(seed, key, share.size, rows[of_pass], _PASSES)
            indices[own] = first_index + (passes - begin // share.size) * share.size + rows
            first_place += share.count
            first_index += share.turns * share.size
        return indices

    def __getitem__(self, index: int) -> Example:
        """See :class:`mmlm.data.sources.Source`. Raises IndexError beyond the last example."""
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See :class:`mmlm.data.sources.ReadsReduced`."""
        name, source, row = self._find(index)
        example = reduced_example(source, row, at_least)
        return replace(example, id=f"{name}/{example.id}")

    def _find(self, index: int) -> tuple[str, Source, int]:
        """The source of an index, its name, and the index in it. Raises IndexError beyond the last example."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is none of the mixture's {len(self)} examples")
        # A turn is one pass of one source; _ends[turn] is the number of examples up to its end.
        turn = bisect_right(self._ends, index)
        name, source = self._turns[turn]
        return name, source, index - (self._ends[turn - 1] if turn else 0)

    def wrapped(self) -> Sequence[Source]:
        """See ``mmlm.data.sources.Wraps``."""
        return list(self._sources.values())

    def encoded(self, index: int) -> bytes | None:
        """See :class:`mmlm.data.sources.GivesBytes`."""
        _, source, row = self._find(index)
        assert gives_bytes(source)
        return source.encoded(row)

    def by_windows(self, seed: int, window: int) -> MixtureWindows:
        """See :class:`mmlm.data.order.DrawsWindows`."""
        return MixtureWindows(self._sources, self._shares, seed, window)

    def origin(self, index: int) -> str:
        """See :class:`mmlm.data.sources.NamesOrigins`."""
        return self._find(index)[0]

    def captions(self) -> Iterator[Caption]:
        """See :class:`mmlm.data.sources.Source`; the captions of repeated examples are repeated."""
        for _, source in self._turns:
            yield from source.captions()

    def remarks(self) -> Iterator[str]:
        """See :class:`mmlm.data.remarks.HasRemarks`; each names its source. What an epoch has of it comes first."""
        for name, source in self._sources.items():
            share = self._shares[name]
            part = f"{share.count:,} of {self.examples_per_epoch:,} examples of an epoch"
            yield f"{name}: {part}, {share.passes:.3g} passes of its {share.size:,}"
            yield from (f"{name}: {remark}" for remark in remarks_of(source))

    def texts(self) -> Iterator[ExampleTexts]:
        """See :class:`mmlm.data.sources.ListsTexts`; repeated examples are repeated."""
        for name, source in self._turns:
            for example in texts_of(source):
                yield replace(example, id=f"{name}/{example.id}")
