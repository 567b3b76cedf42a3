"""``launcher=local`` counts progress: restarts without a new checkpoint between them are limited, others are not."""

import pytest

from mmlm.core.errors import STOPPED
from mmlm.launch import local
from mmlm.launch.local import Local
from mmlm.record.folder import CHECKPOINTS


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """``attempts(ends, saves)``: what comes of attempts that end with these statuses and save at these steps."""

    def go(ends, saves, **settings):
        made = []

        def run(self, ranks, folder, command, port, attempt):
            assert attempt == len(made)
            made.append(attempt)
            if saves[attempt] is not None:
                (folder / CHECKPOINTS / f"step={saves[attempt]:06d}").mkdir(parents=True, exist_ok=True)
            return {0: ends[attempt]}, []

        monkeypatch.setattr(Local, "_run", run)
        return Local(processes=1, **settings)(tmp_path, "the command"), len(made)

    return go


def test_a_crash_at_the_same_place_ends_the_run(attempts, capfd):
    assert attempts([-9] * 9, [4] + 8 * [None], max_restarts=2) == (1, 3)
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in lines] == [
        "starting all ranks again (1 of 2)",
        "starting all ranks again (2 of 2)",
        "what was saved is intact, go on with: the command",
    ]


def test_crashes_that_get_further_each_time_are_no_reason_to_give_up(attempts):
    assert attempts([-9] * 8 + [0], [*range(8), None]) == (0, 9)
    assert attempts([-9] * 3 + [STOPPED], [999_999, 1_000_000, None, None]) == (STOPPED, 4)


def test_without_restarts_there_are_none(attempts):
    assert attempts([-9], [2], max_restarts=0) == (1, 1)


def test_checkpoints_are_found_where_a_run_has_them(tmp_path):
    assert local._newest(tmp_path) == -1
    for name in ("step=000002", "step=1000000", "step=000010", ".saving-7", "best.json"):
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
    assert local._newest(tmp_path) == 1_000_000
