"""Simulated ranks: they work off tasks in one group, and say what went wrong on which of them."""

import os
import signal

import pytest
import torch

from mmlm.check.ranks import Ranks, RanksFailed
from mmlm.core.distributed import gather, rank, sum_over_ranks, world_size

pytestmark = pytest.mark.slow  # starts Python in other processes


def told(value: float) -> tuple[int, int, float]:
    return rank(), world_size(), float(sum_over_ranks(torch.tensor(value + rank())))


def fails_on_one() -> None:
    if rank() == 1:
        raise ValueError("no image\nhere")
    gather(torch.ones(2))


def skips_on_one() -> torch.Tensor:
    return torch.ones(1) if rank() == 1 else gather(torch.ones(2))


def is_killed() -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gather(torch.ones(2))


def test_ranks_work_off_one_task_after_the_other(ranks: Ranks):
    assert ranks.run(2, told, 1.0) == [(0, 2, 3.0), (1, 2, 3.0)]
    assert ranks.run(3, told, 0.5) == [(0, 3, 4.5), (1, 3, 4.5), (2, 3, 4.5)]


def test_what_one_rank_raises_is_told(ranks: Ranks):
    with pytest.raises(
        RanksFailed, match=r"^rank 1 of 2: ValueError: no image here \(test_ranks\.py, line \d+\)$"
    ) as one:
        ranks.run(2, fails_on_one)
    assert not one.value.of_communication
    assert ranks.run(2, told, 1.0)[0] == (0, 2, 3.0), "the next task has new ranks"


def test_a_collective_that_one_rank_leaves_out_ends_with_a_message():
    with Ranks(patience=5) as impatient, pytest.raises(RanksFailed) as one:
        impatient.run(3, skips_on_one)
    assert one.value.of_communication


def test_a_rank_that_ends_is_told():
    with Ranks(patience=5) as impatient, pytest.raises(RanksFailed, match=r"rank \d of 2: "):
        impatient.run(2, is_killed)
