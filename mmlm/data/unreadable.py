"""Examples that cannot be read: named and counted by reason in each epoch, and how many of them a run bears with."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmlm.core.wording import listed
from mmlm.data.survey import reason_of

NAMED = 1000
"""Examples of an epoch that each rank keeps the names of: an epoch of any size costs no more memory."""
_FEW = 10_000
"""Examples (or an epoch, if that is less) that a share is a share of while fewer have been read: of the first hundred
examples, two bad ones say nothing of the rest."""
_SHOWN = 3


@dataclass
class Unreadable:
    """What could not be read since the epoch began."""

    names: dict[str, None] = field(default_factory=dict)
    """``id: reason``, at most ``NAMED`` of them, each once: the values are nothing."""
    unnamed: dict[str, int] = field(default_factory=dict)
    """How many there are beyond those, by reason."""

    def add(self, entries: Iterable[str], unnamed: Mapping[str, int] | None = None) -> None:
        """Takes in ``id: reason`` of some more, and numbers by reason of others."""
        for entry in entries:
            if len(self.names) < NAMED:
                self.names[entry] = None
            elif entry not in self.names:
                reason = _reason(entry)
                self.unnamed[reason] = self.unnamed.get(reason, 0) + 1
        for reason, count in (unnamed or {}).items():
            self.unnamed[reason] = self.unnamed.get(reason, 0) + count

    def __len__(self) -> int:
        return len(self.names) + sum(self.unnamed.values())

    def by_reason(self) -> str:
        """``3 is damaged, 1 there is no such file``: the most frequent reason first."""
        counts = Counter(map(_reason, self.names)) + Counter(self.unnamed)
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items(), key=lambda one: -one[1]))

    @classmethod
    def joined(cls, ranks: Iterable["Unreadable"]) -> "Unreadable":
        """What several ranks could not read."""
        found = cls()
        for one in ranks:
            found.add(one.names, one.unnamed)
        return found


def _reason(entry: str) -> str:
    return reason_of(entry.partition(": ")[2])


@dataclass(frozen=True)
class BadLimits:
    """How many unreadable examples a run bears with; see ``DataSettings``."""

    share: float | None
    """Of the examples that an epoch has had so far; None: any."""
    in_a_row: int | None
    """Consecutive examples in the order of the run; None: any number."""
    examples_per_epoch: int


@dataclass
class BadCount:
    """The unreadable examples of a run so far: what its limits are about.

    It is counted by positions, so it is the same for any number of ranks and workers, and over interruptions.
    """

    epoch: int = 0
    bad: int = 0
    """Unreadable examples of this epoch."""
    row: int = 0
    """Unreadable examples at consecutive positions that end with ``last``."""
    last: int = -2
    """The last position (see ``Batch.position``, from 0) that could not be read."""

    def add(self, positions: Sequence[int], limits: BadLimits) -> str | None:
        """Counts some more, in ascending order; returns which limit is passed and by what, or None.

        One bad example ends no run, however small the data, unless the share is 0.
        """
        passed = None
        for position in positions:
            epoch, place = divmod(position, limits.examples_per_epoch)
            self.bad = self.bad + 1 if epoch == self.epoch else 1
            self.row = self.row + 1 if position == self.last + 1 else 1
            self.epoch, self.last = epoch, position
            passed = passed or self._passed(place + 1, limits)
        return passed

    def _passed(self, read: int, limits: BadLimits) -> str | None:
        """``read`` is the number of examples that the epoch has had."""
        if limits.in_a_row is not None and self.row >= limits.in_a_row:
            return f"{self.row:,} examples in a row cannot be read (data.max_bad_in_a_row={limits.in_a_row})"
        if limits.share is None:
            return None
        of = max(read, min(_FEW, limits.examples_per_epoch))
        if self.bad <= (max(1.0, round(limits.share * of, 6)) if limits.share else 0):
            return None
        return (
            f"{self.bad:,} of the first {read:,} examples of epoch {self.epoch} cannot be read, more than "
            f"{100 * limits.share:g}% of {of:,} (data.max_bad_share={limits.share:g})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def describe_too_many(passed: str, found: Unreadable) -> str:
    """The line that ends a run: which limit was passed, why the examples cannot be read, and the first of them."""
    reasons = f"{found.by_reason()}; first: {listed(sorted(found.names), _SHOWN, '; ', '; and')}"
    return f"{passed}: {reasons}; the state is saved; look at the files (python -m mmlm.lint data=PATH), or allow more"
