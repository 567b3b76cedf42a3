"""A run that waits for its data says so, once."""

import time
from collections.abc import Iterator

import pytest

from mmlm.core.batch import Batch
from mmlm.training.waiting import SHARE, STEPS, WARM_UP, DataWaits
from tests.toy_run import ToyLoader, make_run


def lines(waits: DataWaits, steps: int, waited: float) -> list[str]:
    return [line for line in (waits.add(waited, 1.0) for _ in range(steps)) if line is not None]


@pytest.mark.parametrize(("share", "told"), [(SHARE, 0), (SHARE + 0.01, 1), (1.0, 1)])
def test_it_is_told_once_from_a_share_on(share, told):
    found = lines(DataWaits(), WARM_UP + 5 * STEPS, share)
    assert len(found) == told
    assert all(line.startswith(f"{100 * share:.0f}% of the last {STEPS} steps went by waiting") for line in found)


def test_the_first_steps_do_not_count_and_later_ones_are_looked_at_by_themselves():
    waits = DataWaits()
    assert not lines(waits, WARM_UP, 1.0)
    assert not lines(waits, STEPS, 0.0)
    assert not lines(waits, STEPS - 1, 0.5)
    assert len(lines(waits, 1, 0.5)) == 1


class _Clock:
    """A clock that a slow loader moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class _SlowLoader(ToyLoader):
    clock = _Clock()
    seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.clock.now += self.seconds
            yield batch


@pytest.mark.parametrize(("seconds", "told"), [(1.0, 1), (0.0, 0)])
def test_a_run_measures_what_it_waits(monkeypatch, seconds, told):
    loader = _SlowLoader()
    loader.clock, loader.seconds = _Clock(), seconds
    monkeypatch.setattr(time, "monotonic", loader.clock)
    run = make_run(loader).go(steps=WARM_UP + 2 * STEPS, log_every=1000)
    assert run.console.getvalue().count("went by waiting for data") == told
