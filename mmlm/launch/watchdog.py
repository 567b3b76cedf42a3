"""Says which rank is late, and where it stands, before the others lose patience with it.

A rank marks what it is about to do. All ranks make the same marks in the same order, so whoever has made the fewest is
late; whoever is not heard from at all is stopped, or dead, or cut off.
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
"""How often a watchdog looks within the time that it allows."""


@dataclass(frozen=True)
class Beat:
    """What a rank said of itself last."""

    marks: int
    """How many it has made."""
    at: str
    """What it is doing."""
    seconds: float
    """For how long."""
    said: float
    """When it said so, seconds since the epoch."""


class Watchdog(AbstractContextManager["Watchdog"]):
    """Watches one rank from a thread of its own; with several ranks, each tells the others through ``store``.

    After ``seconds`` without a mark it writes the stacks of all threads to ``folder/rank=<n>.txt``, once a stall, and
    the first rank to notice tells in one line who is late.
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
        """This rank is about to do ``at`` (``step 12: waiting for data``). Costs nothing to speak of."""
        self._at, self._since = at, time.monotonic()
        self._marks += 1

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / _LOOKS):
            self._say()
            if time.monotonic() - self._since > self._seconds and self._reported != self._marks:
                self._reported = self._marks
                self._report()

    def _say(self) -> None:
        beat = Beat(self._marks, self._at, time.monotonic() - self._since, time.time())
        if self._store is not None:
            try:
                self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))
            except RuntimeError:
                return  # whoever keeps the store is gone; the process group will notice

    def _report(self) -> None:
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
        """Of the ranks that report this stall."""
        try:
            return self._store is None or self._store.add(f"stall/{self._marks}", 1) == 1
        except RuntimeError:
            return True

    def _beats(self) -> dict[int, Beat | None]:
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
    """One line: which ranks are late, what they are doing, and where the others wait for them."""
    now = time.time()
    silent = [rank for rank, beat in beats.items() if beat is None or now - beat.said > seconds / 2]
    heard = {rank: beat for rank, beat in beats.items() if beat is not None and rank not in silent}
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
