"""keyed_order: one to one for any size, as likely as a real shuffle, free of memory and of what was asked before."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mmlm.core.keyed_random import keyed_integer, keyed_order
from tests.core.test_keyed_random import MASK, finalizer


def plain_order(seed: int, epoch: int, size: int, place: int, stream: int) -> int:
    """The network in Python's integers."""
    upper = math.isqrt(size - 1) + 1
    lower = -(-size // upper)
    keys = [keyed_integer(seed, epoch, stream, turn) for turn in range(8)]
    while True:
        high, low = divmod(place, lower)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            high = (high + (finalizer((low ^ even) & MASK) >> 1) % upper) % upper
            low = (low + (finalizer((high ^ odd) & MASK) >> 1) % lower) % lower
        place = high * lower + low
        if place < size:
            return place


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 9, 10, 17, 1000, 9973, 65537])
def test_every_number_stands_at_one_place(size):
    order = keyed_order(5, 2, size, torch.arange(size))
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(size))


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (7, 3, 2), (-1, 2**63, 1 << 62)])
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_equals_plain_integers(seed, epoch, stream, size):
    expected = [plain_order(seed, epoch, size, place, stream) for place in range(size)]
    assert keyed_order(seed, epoch, size, torch.arange(size), stream).tolist() == expected


def test_a_place_does_not_depend_on_what_else_is_asked_for():
    whole = keyed_order(1, 2, 300, torch.arange(300))
    places = torch.tensor([[299, 0], [17, 17]])
    before = places.clone()
    assert torch.equal(keyed_order(1, 2, 300, places), whole[places])
    assert torch.equal(places, before)
    assert keyed_order(1, 2, 300, places[:0]).shape == (0, 2)


def test_order_varies_with_every_part_of_the_key_and_is_pinned():
    places = torch.arange(100)
    orders = [
        keyed_order(seed, epoch, 100, places, stream) for seed, epoch, stream in itertools.product((0, 1), repeat=3)
    ]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(orders, 2))
    # A change of these numbers changes the data order of every resumed run.
    assert keyed_order(0, 1, 10, torch.arange(10)).tolist() == [9, 4, 7, 5, 6, 3, 2, 0, 8, 1]


def test_small_orders_are_all_equally_likely():
    """Chi-squared over the 24 orders of 4 numbers, in 2,400 epochs; 23 degrees of freedom, p = 0.0005."""
    counts = Counter(tuple(keyed_order(0, epoch, 4, torch.arange(4)).tolist()) for epoch in range(2400))
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 51


@pytest.mark.parametrize("size", [5, 13])
def test_any_number_may_stand_anywhere_and_follow_any_other(size):
    """Chi-squared of who stands where and of who follows whom, over 1,500 epochs, within 5 standard deviations."""
    epochs, places = 1500, torch.arange(size)
    stands, follows = torch.zeros(size, size), torch.zeros(size, size)
    for epoch in range(epochs):
        order = keyed_order(0, epoch, size, places)
        stands[places, order] += 1
        follows[order[:-1], order[1:]] += 1
    follows = follows[~torch.eye(size, dtype=torch.bool)]
    for counts, freedom in ((stands, (size - 1) ** 2), (follows, size * (size - 1) - 1)):
        expected = counts.mean()
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        self.elements = max([self.elements, *(one.numel() for one in pytree.tree_leaves(made) if torch.is_tensor(one))])
        return made


def test_a_billion_examples_cost_no_memory_and_any_place_is_as_near_as_the_first():
    size = 10**9
    places = torch.cat([torch.arange(64), torch.arange(size - 64, size)])
    with LargestTensor() as largest:
        found = keyed_order(0, 5, size, places)
    assert largest.elements == len(places)
    assert len(found.unique()) == len(places)
    assert found.tolist()[::31] == [plain_order(0, 5, size, place, 0) for place in places.tolist()[::31]]
