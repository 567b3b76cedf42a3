"""A watchdog that says which rank is late, and where it stands, before the collectives of the others time out.

Each rank marks what it is about to do. All ranks make the same marks in the same order, so the rank with the fewest
marks is late. A rank that reports nothing at all is stopped, dead, or cut off.
"""

import faulthandler
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist

_LOOKS = 8
"""How often a watchdog looks, and reports to the other ranks, within the time that it allows."""


@dataclass(frozen=True)
class Beat:
    """The last report of a rank about itself."""

    marks: int
    """Number of marks that the rank has made."""
    at: str
    """The last mark: what the rank is doing."""
    seconds: float
    """How long the rank has been doing it."""
    said: float
    """Time of the report, in seconds since the epoch."""


class Watchdog(AbstractContextManager["Watchdog"]):
    """Watches one rank from a thread of its own, and exchanges reports with the other ranks through ``store``.

    After ``seconds`` without a mark, it writes the stacks of all threads to ``folder/rank=<n>.txt``, once per stall.
    The first rank that notices a stall calls ``tell`` with one line that names the late ranks.
    """

    def __init__(
        self,
        seconds: float,
        folder: Path,
        rank: int,
        world_size: int,
        store: dist.Store | None,
        tell: Callable[[str], None],
    ) -> None:
        self._seconds, self._folder, self._tell = seconds, folder, tell
        self._rank, self._world_size = rank, world_size
        self._store = store
        self._marks, self._at, self._since = 0, "starting", time.monotonic()
        self._reported = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=self._seconds)

    def mark(self, at: str) -> None:
        """Records that this rank is about to do ``at`` (``step 12: waiting for data``). Only sets three fields."""
        self._at, self._since = at, time.monotonic()
        self._marks += 1

    def _watch(self) -> None:
        """The thread: reports at regular intervals, and looks whether the last mark is too old."""
        while not self._ended.wait(self._seconds / _LOOKS):
            self._say()
            # The number of the mark identifies the stall: one that was reported is not reported again.
            if time.monotonic() - self._since > self._seconds and self._reported != self._marks:
                self._reported = self._marks
                self._report()

    def _say(self) -> None:
        """Puts this rank's report into the store, where the others read it if they stall."""
        beat = Beat(self._marks, self._at, time.monotonic() - self._since, time.time())
        if self._store is not None:
            try:
                self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))
            except RuntimeError:
                return  # the store is gone with the process that kept it; the process group will notice

    def _report(self) -> None:
        """Writes the stacks of this rank and, on the first rank to get here, tells who is late."""
        stacks = self._folder / f"rank={self._rank}.txt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with stacks.open("a", encoding="utf-8") as file:
                file.write(f"{time.ctime()}: {self._at} for {time.monotonic() - self._since:.0f} s\n")
                file.flush()
                faulthandler.dump_traceback(file)
        except OSError as error:
            self._tell(f"watchdog: the stacks of rank {self._rank} cannot be written to {stacks} ({error.strerror})")
        if self._is_first():
            self._tell(f"watchdog: {describe(self._beats(), self._seconds)}; stacks are in {self._folder}")

    def _is_first(self) -> bool:
        """Whether this rank is the first to report this stall; True if the store does not answer."""
        try:
            return self._store is None or self._store.add(f"stall/{self._marks}", 1) == 1
        except RuntimeError:
            return True

    def _beats(self) -> dict[int, Beat | None]:
        """The last report of every rank; None for a rank that has not reported."""
        beats: dict[int, Beat | None] = dict.fromkeys(range(self._world_size))
        beats[self._rank] = Beat(self._marks, self._at, time.monotonic() - self._since, time.time())
        for rank in range(self._world_size):
            try:
                if rank != self._rank and self._store is not None and self._store.check([f"beat/{rank}"]):
                    beats[rank] = Beat(**json.loads(self._store.get(f"beat/{rank}")))
            except RuntimeError:
                continue
        return beats


def describe(beats: Mapping[int, Beat | None], seconds: float) -> str:
    """One line that says which ranks are late, what they are doing, and where the others wait for them.

    ``seconds`` is the time without a mark that the watchdog allows.
    """
    now = time.time()
    # Each rank reports several times within `seconds`; clocks of machines may differ a little.
    silent = [rank for rank, beat in beats.items() if beat is None or now - beat.said > seconds / 2]
    heard = {rank: beat for rank, beat in beats.items() if beat is not None and rank not in silent}
    # Of the ranks that report, those with the most marks are the furthest: they wait, and all others are late.
    most = max((beat.marks for beat in heard.values()), default=0)
    behind = [rank for rank, beat in heard.items() if beat.marks < most]
    said = [f"rank {rank} is late: not heard from; it was at '{_at(beats[rank])}'" for rank in silent]
    said += [f"rank {rank} is late: at '{heard[rank].at}' for {heard[rank].seconds:.0f} s" for rank in behind]
    waiting = [rank for rank, beat in heard.items() if beat.marks == most]
    if not said:
        return f"{_names(waiting)} has made no progress for {seconds:g} s, at '{heard[waiting[0]].at}'"
    if waiting:
        said.append(f"{_names(waiting)} waits at '{heard[waiting[0]].at}'")
    return "; ".join(said)


def _at(beat: Beat | None) -> str:
    return "starting" if beat is None else beat.at


def _names(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "each of the ranks ") + ", ".join(map(str, ranks))
