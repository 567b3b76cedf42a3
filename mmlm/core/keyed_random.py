"""Randomness without a generator: a number depends on what it is for, not on what was drawn before it.

A sample's augmentation, its place in an epoch, or a mask is a pure function of (seed, epoch, key, column), so the
number of workers and ranks, and where a run was stopped, cannot change it (counter-based generators: Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). The mixer is splitmix64's finalizer (Steele, Lea, Flood,
"Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), absorbed once for each part of the key.
"""

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_DOUBLE_BITS = 53


def keyed_uniform(seed: int, epoch: int, keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """Independent uniform numbers for each key: float64[len(keys), count] in [0, 1), on the device of ``keys``.

    Row i depends only on (``seed``, ``epoch``, ``keys[i]``, ``stream``) and element (i, j) also on j: asking for
    more columns keeps the first ones. ``keys`` is int64[K]; ``stream`` separates uses that share the other parts
    (order, augmentation, choice of captions).
    """
    base = _mix_integer(_mix_integer(_mix_integer(seed) ^ epoch) ^ stream)
    rows = _mix(_mix(keys + _signed(_GAMMA)) ^ _signed(base))
    columns = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(_GAMMA)
    bits = _mix(rows[:, None] + columns[None, :])
    return _shift_right(bits, 64 - _DOUBLE_BITS).to(torch.float64) * 2.0**-_DOUBLE_BITS


def keyed_permutation(seed: int, epoch: int, size: int, stream: int = 0) -> Tensor:
    """A random order of ``range(size)``: int64[size], the same on every rank, machine and torch version."""
    keys = torch.arange(size, dtype=torch.int64)
    return keyed_uniform(seed, epoch, keys, 1, stream)[:, 0].argsort(stable=True)


def keyed_integer(*key: int) -> int:
    """64 bits, in [0, 2**64), that depend on every integer of ``key`` and on their order: a seed for a generator."""
    mixed = 0
    for part in key:
        mixed = _mix_integer(mixed ^ part)
    return mixed


def stable_hash(text: str) -> int:
    """63 bits of ``text``'s BLAKE2b digest: an int64 key that is equal in every process and on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _signed(value: int) -> int:
    """The int64 with the bits of ``value``."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 values (torch's own repeats the sign bit)."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    """splitmix64's finalizer on int64[...] seen as unsigned; multiplication wraps at 64 bits."""
    values = (values ^ _shift_right(values, 30)) * _signed(_MULTIPLIERS[0])
    values = (values ^ _shift_right(values, 27)) * _signed(_MULTIPLIERS[1])
    return values ^ _shift_right(values, 31)


def _mix_integer(value: int) -> int:
    """One step of splitmix64 from the state ``value``, on a Python integer."""
    value = (value + _GAMMA) & _MASK
    value = (value ^ (value >> 30)) * _MULTIPLIERS[0] & _MASK
    value = (value ^ (value >> 27)) * _MULTIPLIERS[1] & _MASK
    return value ^ (value >> 31)
