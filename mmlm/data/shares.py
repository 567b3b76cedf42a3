"""How many examples of each source an epoch of a mixture has: by whole passes, by weights, or by a temperature."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmlm.core.errors import ArgumentError
from mmlm.core.wording import did_you_mean, listed


@dataclass(frozen=True)
class Share:
    """What an epoch has of one source."""

    size: int
    """Examples of the source."""
    count: int
    """Examples of the source in an epoch."""

    @property
    def passes(self) -> float:
        """How often an epoch goes through the source."""
        return self.count / self.size

    @property
    def turns(self) -> int:
        """Passes that an epoch may have a part of; one more than their number where it begins in the middle of one."""
        return max(1, math.ceil(self.passes) + (self.count % self.size != 0))


def by_passes(sizes: Mapping[str, int], passes: Mapping[str, int]) -> dict[str, Share]:
    """Whole passes of each source, one of those that are not named. Raises ArgumentError."""
    for name, count in passes.items():
        _check_known("passes", name, sizes)
        if count < 1:
            raise ArgumentError(f"passes.{name}: {count} must be at least 1; leave the source out instead")
    return {name: Share(size, size * passes.get(name, 1)) for name, size in sizes.items()}


def by_weights(
    sizes: Mapping[str, int], weights: Mapping[str, float], examples: int | None, most_passes: float | None
) -> dict[str, Share]:
    """Shares of an epoch of ``examples`` (None: as many as all sources have) in proportion to ``weights``.

    No source comes more than ``most_passes`` times an epoch: what is left of its share goes to the others in proportion
    to their weights, and an epoch that the sources cannot fill is shorter. Raises ArgumentError.
    """
    for name, weight in weights.items():
        _check_known("weights", name, sizes)
        if not 0 < weight < math.inf:
            raise ArgumentError(f"weights.{name}: {weight} must be above 0 and finite; leave the source out instead")
    missing = [name for name in sizes if name not in weights]
    if missing:
        raise ArgumentError(f"weights: {listed(missing, 5)} has none; give every source a weight")
    total = sum(sizes.values()) if examples is None else examples
    if total < len(sizes):
        raise ArgumentError(f"examples: {total} must be at least the number of sources, {len(sizes)}")
    if most_passes is not None and not most_passes > 0:
        raise ArgumentError(f"most_passes: {most_passes} must be above 0; null for as many as the weights ask for")
    most = {n: math.inf if most_passes is None else max(1, math.floor(most_passes * size)) for n, size in sizes.items()}
    counts = _filled(total, weights, most)
    return {name: Share(size, counts[name]) for name, size in sizes.items()}


def temperature_weights(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """The weights size ** (1 / temperature): 1 is the sources' own sizes, and the larger the more alike they become.

    As in multilingual translation (arXiv:1907.05019, section 3.1). Raises ArgumentError.
    """
    if not 0 < temperature < math.inf:
        raise ArgumentError(f"temperature: {temperature} must be above 0 and finite; 1 takes sources by their sizes")
    largest = max(sizes.values())
    return {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}


def _filled(total: int, weights: Mapping[str, float], most: Mapping[str, float]) -> dict[str, int]:
    """``total`` divided by weight, none above its ``most`` and none below 1."""
    counts: dict[str, int] = {}
    left, open_names = total, list(weights)
    while open_names:
        whole = sum(weights[name] for name in open_names)
        over = [name for name in open_names if left * weights[name] / whole > most[name]]
        if not over:
            break
        for name in over:
            counts[name] = int(most[name])
            open_names.remove(name)
        left = max(0, total - sum(counts.values()))
    if open_names:
        whole = sum(weights[name] for name in open_names)
        exact = {name: left * weights[name] / whole for name in open_names}
        counts |= {name: max(1, math.floor(value)) for name, value in exact.items()}
        # What rounding has left over goes to the largest remainders: the epoch has exactly the examples asked for.
        rest = max(0, total - sum(counts.values()))
        for name in sorted(open_names, key=lambda name: math.floor(exact[name]) - exact[name])[:rest]:
            counts[name] += 1
    return counts


def _check_known(key: str, name: str, sizes: Mapping[str, int]) -> None:
    if name not in sizes:
        raise ArgumentError(f"{key}.{name}: the mixture has no such source{did_you_mean(name, list(sizes))}")
