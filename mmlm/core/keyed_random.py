"""Random numbers without a generator's state: a number is a hash of its key, not of what was drawn before it.

A sample's augmentation, its place in an epoch, or a mask is a pure function of (seed, epoch, key, column), so the
number of workers and ranks, and where a run was stopped, cannot change it (counter-based generators: Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). The hash is splitmix64's finalizer (Steele, Lea, Flood, "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014), applied once for each part of the key.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
"""splitmix64's increment: 2**64 divided by the golden ratio, made odd."""
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Multipliers of splitmix64's finalizer."""
_DOUBLE_BITS = 53
"""Bits of a float64's mantissa: every multiple of 2**-53 in [0, 1) is equally likely."""
_TURNS = 8
"""Turns of the Feistel network of ``keyed_order``. Four already look random for large sizes (Luby, Rackoff, SIAM J.
Comput. 1988); small sizes need more (``tests/core/test_keyed_order.py``)."""
_NAMED = 1 << 62
"""Set in every stream that is made from a name, so that none is one of ``_RECORDED``."""
_RECORDED: Mapping[str, int] = {
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
"""The streams of results that were recorded before streams had names. A new one is not entered here."""


def stream(owner: str) -> int:
    """The stream of a use of randomness, by the dotted name of its owner, such as ``my_package.my_objective``.

    Uses with different names draw independent numbers. Nothing has to be registered: the stream is a hash of the name.
    """
    return _RECORDED.get(owner, stable_hash(owner) | _NAMED)


def keyed_uniform(seed: int, epoch: int, keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """Independent uniform numbers for each key: float64[len(keys), count] in [0, 1), on the device of ``keys``.

    Row i depends only on (``seed``, ``epoch``, ``keys[i]``, ``stream``) and element (i, j) also on j: asking for
    more columns keeps the first ones. ``keys`` is int64[K]; ``stream`` (see the function of that name) separates
    uses that share the other parts (order, augmentation, choice of captions).
    """
    base = _mix_integer(_mix_integer(_mix_integer(seed) ^ epoch) ^ stream)
    # Keys are mixed before they meet the base: ids are often consecutive and would differ in a few low bits only.
    rows = _mix(_mix(keys + _signed(_GAMMA)) ^ _signed(base))
    # Column j is the j-th number of a splitmix64 generator that starts at the row, reached directly.
    columns = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(_GAMMA)
    bits = _mix(rows[:, None] + columns[None, :])
    # The upper bits, as many as a float64 holds exactly: rounding all 64 could give 1.0.
    return _shift_right(bits, 64 - _DOUBLE_BITS).to(torch.float64) * 2.0**-_DOUBLE_BITS


def keyed_order(seed: int, epoch: int, size: int, places: Tensor, stream: int = 0) -> Tensor:
    """What stands at some places of a random order of ``range(size)``, without making the order: int64[...].

    ``places`` is int64[...], each in [0, ``size``). Every number of ``range(size)`` stands at one place. Memory and
    time do not grow with ``size``, and the order is the same on every rank, machine and torch version.

    A number is written with two digits of about equal range. In turn, each digit is shifted by a hash of the other one,
    which can be undone, and is thus one to one (a Feistel network, with sums in place of exclusive or). The range of
    both digits is a little more than ``size``: what falls outside goes through the network again (cycle walking: Black,
    Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
    """
    upper = max(1, math.isqrt(max(0, size - 1)) + 1)
    lower = max(1, -(-size // upper))
    shifts = [keyed_integer(seed, epoch, stream, turn) for turn in range(_TURNS)]
    found = _shuffle_once(places, upper, lower, shifts)
    while (outside := found >= size).any():
        found[outside] = _shuffle_once(found[outside], upper, lower, shifts)
    return found


def _shuffle_once(numbers: Tensor, upper: int, lower: int, shifts: Sequence[int]) -> Tensor:
    """One to one from int64[...] in [0, ``upper * lower``) to the same range."""
    high, low = numbers // lower, numbers % lower
    for even, odd in zip(shifts[::2], shifts[1::2], strict=True):
        high = (high + _shift_right(_mix(low ^ _signed(even)), 1) % upper) % upper
        low = (low + _shift_right(_mix(high ^ _signed(odd)), 1) % lower) % lower
    return high * lower + low


def keyed_integer(*key: int) -> int:
    """A hash of the integers of ``key`` and of their order, in [0, 2**64): a seed for a generator."""
    mixed = 0
    for part in key:
        mixed = _mix_integer(mixed ^ part)
    return mixed


def stable_hash(text: str) -> int:
    """63 bits of ``text``'s BLAKE2b digest: an int64 key that is equal in every process and on every machine.

    Python's own ``hash`` of a string differs from process to process.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _signed(value: int) -> int:
    """The int64 that has the lowest 64 bits of ``value``: torch has no arithmetic on unsigned 64-bit integers."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 values (torch's ``>>`` repeats the sign bit)."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    """splitmix64's finalizer on int64[...] read as unsigned; torch's multiplication wraps at 64 bits, as it has to."""
    values = (values ^ _shift_right(values, 30)) * _signed(_MULTIPLIERS[0])
    values = (values ^ _shift_right(values, 27)) * _signed(_MULTIPLIERS[1])
    return values ^ _shift_right(values, 31)


def _mix_integer(value: int) -> int:
    """The number that splitmix64 makes from the state ``value``, a Python integer."""
    value = (value + _GAMMA) & _MASK
    value = (value ^ (value >> 30)) * _MULTIPLIERS[0] & _MASK
    value = (value ^ (value >> 27)) * _MULTIPLIERS[1] & _MASK
    return value ^ (value >> 31)
