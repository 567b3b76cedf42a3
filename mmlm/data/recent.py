"""What was opened most recently is kept open, up to a number of items and of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Calls a function once for each key, and forgets the results that were not asked for for the longest time.

    Threads may share it. Two that ask for one key at the same time may both call the function. An error of the function
    is not remembered. A result that is forgotten is not closed: whoever still has it may go on using it.
    """

    def __init__(
        self, make: Callable[[Key], Value], size_of: Callable[[Value], int], most_items: int, most_bytes: int
    ) -> None:
        """At least one result is kept, whatever its size."""
        self._make, self._size_of, self._most_items, self._most_bytes = make, size_of, most_items, most_bytes
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> tuple[int, int]:
        """How many results are kept, and their bytes: within both bounds, but for a single one that is larger."""
        with self._lock:
            return len(self._kept), self._bytes

    def __call__(self, key: Key) -> Value:
        """The result for ``key``."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = self._make(key)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = value
                self._bytes += self._size_of(value)
            while len(self._kept) > 1 and (len(self._kept) > self._most_items or self._bytes > self._most_bytes):
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= self._size_of(oldest)
        return value
