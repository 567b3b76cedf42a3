"""A mixture in an order by windows: each source is read by its shards, and all of them are mixed nearby."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_random import keyed_integer, keyed_order, stable_hash, stream
from mmlm.data.order import Windows, has_shards
from mmlm.data.shares import Share
from mmlm.data.sources import Source

BLOCK = 8192
"""Examples of an epoch that are mixed with one another, about."""
_BLOCKS = stream("mmlm.data.mixture_windows.blocks")
_PASSES = stream("mmlm.data.mixture_windows.passes")


class MixtureWindows:
    """See ``mmlm.data.order.DrawsWindows``.

    An epoch is cut into blocks of about ``BLOCK`` examples, each of which has of every source its part of the epoch, to
    the nearest example, in a keyed order. Of a source, one block goes on where the last has stopped, in the order of
    its own windows; a source without shards has a keyed order of all its examples instead.
    """

    def __init__(self, sources: Mapping[str, Source], shares: Mapping[str, Share], seed: int, window: int) -> None:
        """Raises ArgumentError if no source has shards."""
        self._seed, self._shares = seed, dict(shares)
        self._windows = {
            name: Windows(source.shard_sizes(), seed, window) for name, source in sources.items() if has_shards(source)
        }
        if not self._windows:
            raise ArgumentError(
                f"shuffle_window={window} wants a source with shards, and the mixture has none; set null"
            )
        self._counts = torch.tensor([share.count for share in self._shares.values()])
        self._total = int(self._counts.sum())
        self._blocks = max(1, self._total // max(BLOCK, len(self._counts)))

    def drawn(self, epoch: int, places: Tensor) -> Tensor:
        """See ``mmlm.data.order.WindowedDraw``."""
        blocks = places * self._blocks // self._total
        # A source's part is rounded down, so that a block may begin a little earlier than this tells.
        ends = (self._counts[:, None] * (blocks + 1) // self._blocks).sum(0)
        blocks = blocks + (places >= ends).to(torch.int64)
        indices = torch.empty_like(places)
        for block in blocks.unique().tolist():
            chosen = blocks == block
            begins, ends = (self._counts * number // self._blocks for number in (block, block + 1))
            start, size = int(begins.sum()), int((ends - begins).sum())
            key = keyed_integer(epoch, block)
            mixed = keyed_order(self._seed, key, size, places[chosen] - start, _BLOCKS)
            of_source = (ends - begins).cumsum(0)
            source = torch.searchsorted(of_source, mixed, right=True)
            numbers = begins[source] + mixed - (of_source - (ends - begins))[source]
            indices[chosen] = self._indices(epoch, source, numbers)
        return indices

    def _indices(self, epoch: int, source: Tensor, numbers: Tensor) -> Tensor:
        """The mixture's indices of the examples with the int64[K] ``numbers`` within the epoch of their sources."""
        indices = torch.empty_like(numbers)
        first = 0
        for place, (name, share) in enumerate(self._shares.items()):
            own = source == place
            begin = epoch * share.count
            positions = numbers[own] + begin
            passes, rows = positions // share.size, positions % share.size
            for number in passes.unique().tolist():
                key = keyed_integer(stable_hash(name), number)
                of_pass = passes == number
                windows = self._windows.get(name)
                rows[of_pass] = (
                    keyed_order(self._seed, key, share.size, rows[of_pass], _PASSES)
                    if windows is None
                    else windows.indices(key, rows[of_pass])
                )
            indices[own] = first + (passes - begin // share.size) * share.size + rows
            first += share.turns * share.size
        return indices
