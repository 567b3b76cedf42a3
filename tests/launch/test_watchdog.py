"""The watchdog names the rank that is late, and writes down where a stalled one stands."""

import json
import threading
import time

from torch.distributed import HashStore

from mmlm.launch.watchdog import Beat, Watchdog, describe
from tests.waiting import until


def beat(marks: int, at: str, seconds: float = 3.0, ago: float = 0.0) -> Beat:
    return Beat(marks, at, seconds, time.time() - ago)


def test_the_rank_with_the_fewest_marks_is_late():
    beats = {0: beat(8, "step 4: reducing"), 1: beat(7, "step 4: waiting for data", 61), 2: beat(8, "step 4: reducing")}
    assert describe(beats, 60) == (
        "rank 1 is late: at 'step 4: waiting for data' for 61 s; each of the ranks 0, 2 waits at 'step 4: reducing'"
    )


def test_a_rank_that_says_nothing_is_late():
    beats = {0: beat(8, "step 4"), 1: beat(8, "step 4", ago=50), 2: None}
    assert describe(beats, 60) == (
        "rank 1 is late: not heard from; it was at 'step 4'; rank 2 is late: not heard from; it was at 'starting'; "
        "rank 0 waits at 'step 4'"
    )


def test_ranks_at_the_same_place_are_all_told():
    assert describe({0: beat(2, "step 1"), 1: beat(2, "step 1")}, 60) == (
        "each of the ranks 0, 1 has made no progress for 60 s, at 'step 1'"
    )


def stalled(seconds: float, folder, store, told) -> tuple[Watchdog, threading.Event]:
    said = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        said.set()

    return Watchdog(seconds, folder, 0, 2, store, tell), said


def test_a_stall_is_told_once_with_the_stacks(tmp_path):
    store, told = HashStore(), []
    watchdog, said = stalled(0.2, tmp_path / "stacks", store, told)
    with watchdog:
        watchdog.mark("step 1: reducing")
        assert said.wait(60)
        # A look leaves in the store for how long the rank has stood still: many looks later nothing more is told.
        assert until(lambda: json.loads(store.get("beat/0"))["seconds"] > 1.0, 60)
    assert len(told) == 1
    assert told[0].startswith("watchdog: rank 1 is late: not heard from; it was at 'starting'; rank 0 waits at")
    stacks = (tmp_path / "stacks" / "rank=0.txt").read_text()
    assert "step 1: reducing for" in stacks
    assert "test_a_stall_is_told_once_with_the_stacks" in stacks


def test_progress_keeps_it_quiet(tmp_path):
    told: list[str] = []
    watchdog, _ = stalled(30.0, tmp_path, None, told)
    with watchdog:
        for step in range(5):
            watchdog.mark(f"step {step}")
    assert told == []
    assert list(tmp_path.iterdir()) == []
