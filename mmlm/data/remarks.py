"""What a source finds odd about its examples, and reads all the same: said in one line before training."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from mmlm.data.sources import Source


@runtime_checkable
class HasRemarks(Protocol):
    """A source that looks at its own data."""

    def remarks(self) -> Iterator[str]:
        """Lines for the user, without the key of the source. Cheap: no image is decoded."""
        ...


def remarks_of(source: Source) -> list[str]:
    """The remarks of a source; none of one that does not look."""
    return list(source.remarks()) if isinstance(source, HasRemarks) else []
