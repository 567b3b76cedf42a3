"""Which example stands at which position of a run, as a function of (seed, position) that costs no memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_random import keyed_integer, keyed_order, stream
from mmlm.data.sources import Source, Wraps

_ORDER = stream("mmlm.data.loader.order")
_SHARDS = stream("mmlm.data.order.shards")
_WITHIN = stream("mmlm.data.order.within")


@runtime_checkable
class Sharded(Protocol):
    """A source whose examples lie in shards (files, or parts of them) that are cheaper to read one after another."""

    def shard_sizes(self) -> Sequence[int]:
        """The number of examples in each shard. The source's indices go through the shards in this order."""
        ...


@runtime_checkable
class DrawsEpochs(Protocol):
    """A source of which an epoch has other examples than each index once."""

    @property
    def examples_per_epoch(self) -> int:
        """The number of examples in an epoch."""
        ...

    def drawn(self, seed: int, epoch: int, places: Tensor) -> Tensor:
        """The indices int64[K] of the examples at int64[K] places, 0 to ``examples_per_epoch`` - 1, of an epoch.

        No two places of an epoch have one index. The order of the places is no matter: ``EpochOrder`` shuffles them.
        """
        ...


def examples_per_epoch(source: Source) -> int:
    """The number of examples that an epoch of a source has."""
    return source.examples_per_epoch if isinstance(source, DrawsEpochs) else len(source)


@dataclass(frozen=True)
class Located:
    """The examples at some positions."""

    epochs: Tensor
    """int64[K]."""
    indices: Tensor
    """int64[K]: which example of the source."""


class WindowedDraw(Protocol):
    """Which examples an epoch has, in an order by windows of shards."""

    def drawn(self, epoch: int, places: Tensor) -> Tensor:
        """The indices int64[K] at int64[K] places, 0 to ``examples_per_epoch`` - 1, of an epoch, in their order."""
        ...


@runtime_checkable
class DrawsWindows(Protocol):
    """A source that ``DrawsEpochs``, and can do so by windows."""

    def by_windows(self, seed: int, window: int) -> WindowedDraw:
        """Its order by windows of so many shards. Raises ArgumentError if it has no shards."""
        ...


def has_shards(source: Source) -> TypeGuard[Sharded]:
    """Whether a source, and all that it is made of, has shards."""
    if isinstance(source, Wraps) and not all(map(has_shards, source.wrapped())):
        return False
    return isinstance(source, Sharded)


class EpochOrder:
    """A random order of a source for every epoch, one epoch after another.

    Without ``window`` each epoch is one keyed order of all examples: any example may follow any other. With it, the
    shards have a keyed order, and each ``window`` shards that follow one another in it are one keyed order of their
    examples. So at any time at most ``window`` shards are read (two windows' at the border between them), and never
    again in that epoch. A mixture reads so many shards of each of its sources.

    Args:
        source: the examples; with ``window`` it has to be ``Sharded``, or ``DrawsWindows``.
        seed: of the order.
        window: shards whose examples are mixed; None mixes everything.

    Raises:
        ArgumentError: a window below 1, or one for a source without shards.
    """

    def __init__(self, source: Source, seed: int, window: int | None = None) -> None:
        self._draws = source if isinstance(source, DrawsEpochs) else None
        self.examples_per_epoch = examples_per_epoch(source)
        self._seed = seed
        self._windows: Windows | None = None
        self._windowed: WindowedDraw | None = None
        if window is None:
            return
        if window < 1:
            raise ArgumentError(f"shuffle_window={window} must be at least 1 shard; null mixes all examples")
        if isinstance(source, DrawsWindows):
            self._windowed = source.by_windows(seed, window)
        elif has_shards(source):
            self._windows = Windows(source.shard_sizes(), seed, window)
        else:
            kind = type(source).__name__
            raise ArgumentError(f"shuffle_window={window} wants a source with shards, which {kind} has not; set null")

    def at(self, positions: Tensor) -> Located:
        """The examples at int64[K] ``positions``, counted from the run's first example."""
        epochs, places = positions // self.examples_per_epoch, positions % self.examples_per_epoch
        indices = torch.empty_like(places)
        # Few epochs at once: a batch lies in one, or in two where it crosses an end.
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            indices[chosen] = self._in_epoch(epoch, places[chosen])
        return Located(epochs, indices)

    def _in_epoch(self, epoch: int, places: Tensor) -> Tensor:
        if self._windowed is not None:
            return self._windowed.drawn(epoch, places)
        if self._windows is not None:
            return self._windows.indices(epoch, places)
        mixed = keyed_order(self._seed, epoch, self.examples_per_epoch, places, _ORDER)
        return mixed if self._draws is None else self._draws.drawn(self._seed, epoch, mixed)


class Windows:
    """A keyed order of examples that lie in shards, by windows of shards; see ``EpochOrder``.

    Args:
        sizes: examples of each shard.
        seed: of all orders.
        window: shards whose examples are mixed.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        self._seed, self._window = seed, window
        self._sizes = torch.tensor(sizes, dtype=torch.int64)
        self._first = self._sizes.cumsum(0) - self._sizes
        self._layout: tuple[int, _Layout] | None = None

    def indices(self, key: int, places: Tensor) -> Tensor:
        """The indices int64[K] at int64[K] places of the order of ``key``."""
        # The order of the shards costs as much as there are shards, so that of the current epoch is kept.
        if self._layout is None or self._layout[0] != key:
            self._layout = (key, self._arranged(key))
        layout = self._layout[1]
        windows = torch.searchsorted(layout.window_ends, places, right=True)
        indices = torch.empty_like(places)
        for window in windows.unique().tolist():
            chosen = windows == window
            start, end = layout.bounds(window)
            of_window = keyed_integer(key, window)
            mixed = start + keyed_order(self._seed, of_window, end - start, places[chosen] - start, _WITHIN)
            shards = torch.searchsorted(layout.shard_ends, mixed, right=True)
            shard = layout.shards[shards]
            rows = mixed - (layout.shard_ends[shards] - self._sizes[shard])
            indices[chosen] = self._first[shard] + rows
        return indices

    def _arranged(self, key: int) -> "_Layout":
        count = len(self._sizes)
        shards = keyed_order(self._seed, key, count, torch.arange(count), _SHARDS)
        ends = self._sizes[shards].cumsum(0)
        last = torch.arange(self._window, count + self._window, self._window).clamp(max=count) - 1
        return _Layout(shards, ends, ends[last])


@dataclass(frozen=True)
class _Layout:
    """The shards of one epoch in their order. Places are counted from the epoch's first example."""

    shards: Tensor
    """int64[S]: the shards' numbers."""
    shard_ends: Tensor
    """int64[S]: the place behind each shard's last example, before examples of a window are mixed."""
    window_ends: Tensor
    """int64[number of windows]: the place behind each window's last example."""

    def bounds(self, window: int) -> tuple[int, int]:
        """The place of a window's first example, and that behind its last."""
        return int(self.window_ends[window - 1]) if window else 0, int(self.window_ends[window])
