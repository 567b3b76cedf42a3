"""keyed_random: the numbers equal a plain-integer formula and depend on their key alone."""

import ast
from pathlib import Path

import pytest
import torch

import mmlm
from mmlm.core.keyed_random import keyed_integer, keyed_order, keyed_uniform, stable_hash, stream

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def finalizer(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def splitmix(state: int) -> int:
    return finalizer((state + GAMMA) & MASK)


def plain_uniform(seed: int, epoch: int, key: int, column: int, stream: int) -> float:
    base = splitmix(splitmix(splitmix(seed & MASK) ^ (epoch & MASK)) ^ stream)
    state = finalizer(splitmix(key & MASK) ^ base)
    return (finalizer((state + (column + 1) * GAMMA) & MASK) >> 11) / 2**53


def test_splitmix_reference_value():
    # The first output of splitmix64 from seed 0, as published with the generator.
    assert splitmix(0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    ("seed", "epoch", "stream"), [(0, 0, 0), (1, 0, 0), (2**63 + 5, 7, 2), (-3, 1, 0), (12345, 10**6, 1)]
)
def test_equals_plain_integers(seed, epoch, stream):
    keys = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1, 77])
    values = keyed_uniform(seed, epoch, keys, 5, stream)
    assert values.dtype == torch.float64
    expected = [[plain_uniform(seed, epoch, key, column, stream) for column in range(5)] for key in keys.tolist()]
    assert values.tolist() == expected


def test_a_row_depends_on_its_key_alone():
    keys = torch.arange(50)
    everything = keyed_uniform(3, 4, keys, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_uniform(3, 4, keys[order], 8), everything[order])
    assert torch.equal(keyed_uniform(3, 4, keys[7:9], 3), everything[7:9, :3])
    assert keyed_uniform(3, 4, keys[:0], 3).shape == (0, 3)
    assert keyed_uniform(3, 4, keys, 0).shape == (50, 0)


def test_does_not_touch_the_global_generator():
    state = torch.get_rng_state()
    keyed_uniform(0, 0, torch.arange(10), 2)
    keyed_order(0, 0, 10, torch.arange(10))
    assert torch.equal(torch.get_rng_state(), state)


def test_looks_uniform_and_independent():
    values = keyed_uniform(0, 0, torch.arange(20_000), 6)
    assert values.min() >= 0
    assert values.max() < 1
    deviation = 1 / (12 * 20_000) ** 0.5
    assert (values.mean(0) - 0.5).abs().max() < 4 * deviation
    counts = torch.histc(values.flatten(), bins=20, min=0, max=1)
    chi_square = ((counts - 6000) ** 2 / 6000).sum()
    assert chi_square < 45  # 19 degrees of freedom: p = 0.0007
    off_diagonal = torch.corrcoef(values.T) - torch.eye(6)
    assert off_diagonal.abs().max() < 4 / 20_000**0.5
    neighbours = torch.corrcoef(torch.stack([values[:-1, 0], values[1:, 0]]))[0, 1]
    assert neighbours.abs() < 4 / 20_000**0.5


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seed_epoch_and_stream_separate(other):
    keys = torch.arange(5000)
    first = keyed_uniform(0, 0, keys, 1)[:, 0]
    second = keyed_uniform(other[0], other[1], keys, 1, other[2])[:, 0]
    assert not torch.equal(first, second)
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 4 / 5000**0.5


def test_seed_and_epoch_do_not_stand_in_for_each_other():
    keys = torch.arange(3)
    draws = {
        (s, e, t): tuple(keyed_uniform(s, e, keys, 1, t).flatten().tolist())
        for s, e, t in [(s, e, t) for s in range(4) for e in range(4) for t in range(4)]
    }
    assert len(set(draws.values())) == 64


def test_stable_hash_is_pinned_and_fits_an_int64():
    assert stable_hash("") == 8238016292129134938
    assert stable_hash("grinning face") == 468751834958739088
    values = [stable_hash(text) for text in ("a", "b", "ä", "\0a", "\ud800", "a" * 10_000)]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)
    assert torch.tensor(values).dtype == torch.int64


def test_an_integer_depends_on_every_part_of_its_key_and_on_their_order():
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (-1, 0, 0), (2**40, 3, 5), (3, 2**40, 5)]
    found = [keyed_integer(*key) for key in keys]
    assert len(set(found)) == len(keys)
    assert all(0 <= one < 2**64 for one in found)
    assert keyed_integer(7, 8, 9) == keyed_integer(7, 8, 9)
    torch.manual_seed(max(found))
    low = {keyed_integer(0, step, rank) % 2**32 for step in range(1000) for rank in range(8)}
    assert len(low) > 7995, "torch's CPU generator takes 32 bits of its seed"


# Streams by name

RECORDED = {
    "mmlm.data.loader.order": 0,
    "mmlm.data.loader.augment": 1,
    "mmlm.data.loader.captions": 2,
    "mmlm.objectives.parallel_captioning": 16,
    "mmlm.objectives.prefix": 17,
    "mmlm.objectives.masked": 18,
    "mmlm.objectives.shared.masked_patches": 19,
    "mmlm.objectives.shared.negatives.texts": 20,
    "mmlm.objectives.shared.negatives.images": 21,
    "mmlm.objectives.self_distillation": 22,
    "mmlm.model.patch_dropout": 23,
}
"""The streams that the published results were drawn from."""


def shipped() -> list[str]:
    """The names that the package calls ``stream`` with."""
    calls = (
        node
        for file in sorted(Path(mmlm.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "stream"
    )
    return [ast.literal_eval(call.args[0]) for call in calls]


def test_shipped_uses_draw_what_they_always_drew():
    assert {name: stream(name) for name in RECORDED} == RECORDED
    assert sorted(shipped()) == sorted(set(shipped())), "each has its own"
    assert set(RECORDED) <= set(shipped())


def test_a_stream_by_name_is_that_of_no_other_name():
    names = ["", "a", "b", "order", "my_package.my_objective", *(f"owner {i}" for i in range(20_000))]
    named = {stream(name) for name in names}
    assert len(named) == len(names)
    assert min(named) >= 1 << 32, "no number that was given by hand"
    assert stream("my_package.my_objective") == stream("my_package.my_objective") < 1 << 63
    keys = torch.arange(5)
    one, other = (keyed_uniform(0, 0, keys, 3, stream(name)) for name in ("a", "b"))
    assert not torch.equal(one, other)
    assert one[2, 1].item() == plain_uniform(0, 0, 2, 1, stream("a"))
