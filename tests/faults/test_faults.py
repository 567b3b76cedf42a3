"""A few rounds of the fault tool, and what it is made of. The recorded run: experiments/faults/README.md."""

import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmlm.core.errors import UserError
from tests.faults.__main__ import FaultSettings, chosen, main, read_rounds, run
from tests.faults.all_kinds import KINDS
from tests.faults.compare import differ
from tests.faults.rounds import Round, kind_of
from tests.faults.table import table


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_faults_do_not_change_what_is_trained(tmp_path, capfd):
    """Two rounds of one process; more by ``python -m tests.faults``."""
    names = ("SIGTERM", "full disk while saving")
    kinds = [replace(kind, processes=(1,), workers=(0,)) for kind in chosen(names)]
    failed = run(FaultSettings(out=str(tmp_path), rounds=2, seed=1), kinds)
    rounds = read_rounds(tmp_path)
    assert sorted(one.kind for one in rounds) == sorted(names)
    assert failed == 0, capfd.readouterr().out
    assert all(one.equal and one.resumed for one in rounds)
    assert list((tmp_path / "rounds").iterdir()) == []


def test_a_hundred_rounds_have_each_kind_four_times():
    played = [kind_of(number, 0, KINDS).name for number in range(100)]
    counts = Counter(played)
    assert set(counts) == {kind.name for kind in KINDS}
    assert len(KINDS) >= 20
    assert min(counts.values()) >= 4
    assert played != [kind_of(number, 1, KINDS).name for number in range(100)]


def test_one_bit_is_a_difference():
    weights = torch.ones(3)
    bits = weights.view(torch.int32).clone()
    bits[1] ^= 1
    assert list(differ({"w": weights}, {"w": weights.clone()}, "weights", 0.0)) == []
    found = list(differ({"w": weights}, {"w": bits.view(torch.float32)}, "weights", 0.0))
    assert found == ["weights.w: tensors differ by 1.19209e-07"]
    assert list(differ({"w": weights}, {"w": bits.view(torch.float32)}, "weights", 1e-5)) == []


def test_lost_rows_and_keys_are_differences():
    assert list(differ([{"step": 1, "seconds": 2.0}], [{"step": 1, "seconds": 3.0}], "metrics", 0.0)) == []
    assert list(differ([1, 2], [1], "metrics", 0.0)) == ["metrics: 2 and 1 entries"]
    assert list(differ({"a": 1}, {}, "state", 0.0)) == ["state: ['a'] only in one"]
    assert list(differ(float("nan"), float("nan"), "loss", 0.0)) == []
    assert list(differ(1.0, 1.5, "loss", 1e-5)) == ["loss: 1.0 and 1.5"]


def test_the_table_counts_rounds_statuses_and_equals():
    one = Round(0, "SIGTERM", 2, 0, "row 1", [75, 0], [3], 20.0, True, [])
    lines = table([one, replace(one, statuses=[None, 0], equal=False)]).splitlines()
    own = next(line for line in lines if line.startswith("| SIGTERM"))
    assert own.endswith("| 2 | 75 (1), None (1) | 0 (2) | 1/2 |")
    assert lines[-1] == "| all | | 2 | | | 1/2 |"


def test_the_same_command_plays_what_is_left(tmp_path, monkeypatch, capsys):
    played = []

    def one(number, kind, seed, out):
        played.append(number)
        if number == 3:
            raise KeyboardInterrupt
        return Round(number, kind.name, 1, 0, "row 1", [75, 0], [3], 20.0, True, [])

    monkeypatch.setattr("tests.faults.__main__.play", one)
    with pytest.raises(KeyboardInterrupt):
        main([f"out={tmp_path}", "total=5"])
    monkeypatch.setattr("tests.faults.__main__.play", lambda number, *rest: one(number + 10, *rest))
    assert main([f"out={tmp_path}", "total=5"]) == 0
    assert played == [0, 1, 2, 3, 13, 14]
    assert "2 of 2, round 14: " in capsys.readouterr().out


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="kinds: there is no 'SIGTREM'; there are: SIGTERM, SIGINT"):
        main([f"out={tmp_path}", "kinds=[SIGTREM]"])
