"""EpochOrder: every example once an epoch, shards read a window at a time, from any position and in any pieces."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from mmlm.core.batch import Example
from mmlm.core.errors import ArgumentError
from mmlm.data.order import EpochOrder
from mmlm.data.sources import Source
from tests.data.pictures import Pictures

SIZES = (3, 1, 0, 7, 2, 5, 4, 1)
"""Shards of many sizes, one of them empty."""
TOTAL = sum(SIZES)


@dataclass(frozen=True)
class Shards:
    """A source that has shards and nothing else: it is never read."""

    sizes: tuple[int, ...] = SIZES

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("an order reads no example")

    def captions(self):
        raise AssertionError("an order reads no caption")

    def shard_sizes(self) -> tuple[int, ...]:
        return self.sizes

    def shard_of(self, index: int) -> int:
        return next(shard for shard in range(len(self.sizes)) if index < sum(self.sizes[: shard + 1]))


def epoch_of(order: EpochOrder, epoch: int, size: int = TOTAL) -> list[int]:
    located = order.at(torch.arange(size) + epoch * size)
    assert located.epochs.tolist() == [epoch] * size
    return located.indices.tolist()


@pytest.mark.parametrize("window", [None, 1, 2, 3, 8, 100])
def test_every_example_comes_once_an_epoch_and_epochs_differ(window):
    order = EpochOrder(Shards(), 4, window)
    epochs = [epoch_of(order, epoch) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(TOTAL)) for epoch in epochs)
    assert all(one != other for one, other in pairwise(epochs))
    assert epoch_of(EpochOrder(Shards(), 5, window), 0) != epochs[0]


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_a_window_of_shards_is_read_whole_before_the_next(window):
    source = Shards()
    order = EpochOrder(source, 0, window)
    for epoch in range(10):
        shards = [source.shard_of(index) for index in epoch_of(order, epoch)]
        spans = {shard: (shards.index(shard), TOTAL - shards[::-1].index(shard)) for shard in set(shards)}
        for place in range(TOTAL):
            open_shards = [shard for shard, (first, end) in spans.items() if first <= place < end]
            assert len(open_shards) <= window


def test_any_shard_may_be_the_first():
    source = Shards()
    order = EpochOrder(source, 0, 1)
    first = {source.shard_of(epoch_of(order, epoch)[0]) for epoch in range(60)}
    assert first == {shard for shard, size in enumerate(SIZES) if size}


def test_examples_of_a_window_are_mixed():
    """With all shards in one window any example may be the first; with one shard a window its own order varies too."""
    whole, single = EpochOrder(Shards((2, 2)), 0, 2), EpochOrder(Shards((4,)), 0, 1)
    for order in (whole, single):
        firsts = [epoch_of(order, epoch, 4)[0] for epoch in range(80)]
        assert set(firsts) == {0, 1, 2, 3}


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_order_is_a_function_of_the_position_alone(window):
    """Asked in pieces, backwards, across epochs, by orders that know nothing yet."""
    positions = torch.arange(3 * TOTAL)
    whole = EpochOrder(Shards(), 1, window).at(positions)
    shuffled = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))]
    again = EpochOrder(Shards(), 1, window)
    for piece in shuffled.split(5):
        found = again.at(piece)
        assert torch.equal(found.indices, whole.indices[piece])
        assert torch.equal(found.epochs, whole.epochs[piece])
    far = 10**12 * TOTAL + 5
    assert EpochOrder(Shards(), 1, window).at(torch.tensor([far])).epochs.tolist() == [10**12]


def test_without_a_window_shards_do_not_matter():
    assert epoch_of(EpochOrder(Shards(), 0), 0) == epoch_of(EpochOrder(Pictures(TOTAL), 0), 0)


def test_a_window_wants_shards():
    source: Source = Pictures(5)
    with pytest.raises(ArgumentError, match="shuffle_window=2 wants a source with shards, which Pictures has not"):
        EpochOrder(source, 0, 2)
    with pytest.raises(ArgumentError, match="shuffle_window=0 must be at least 1 shard"):
        EpochOrder(Shards(), 0, 0)
