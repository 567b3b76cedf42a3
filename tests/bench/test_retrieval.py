"""``python -m mmlm.bench retrieval``: both ways give the same ranks, and what the table says of them."""

import pytest
import torch

from mmlm.bench import __main__ as bench
from mmlm.bench import retrieval
from mmlm.bench.process import Measured


def test_sorting_and_counting_give_the_same_ranks():
    counted, sorted_ = retrieval.by_counting("300", "4")(), retrieval.by_sorting("300", "4")()
    assert torch.equal(counted, sorted_)
    assert len(counted.unique()) > 10


def test_the_table(monkeypatch, command, tmp_path):
    cost = {"products": (1.0, 9), "by_sorting": (31.0, 99), "by_counting": (2.0, 40)}

    def measure(module_function, arguments):
        assert arguments == ["600", "8"]
        seconds, mib = cost[module_function.rpartition(":")[2]]
        return Measured(seconds, mib * retrieval.MIB)

    monkeypatch.setattr(retrieval, "measure", measure)
    out = tmp_path / "table.md"
    outcome = command(bench, "retrieval", "sizes=[600]", "width=8", f"out={out}")
    assert outcome.status == 0
    assert "| 600 | 1.00 | 31.00 | 2.00 | 15.5 | 30 | 40 |" in out.read_text()


@pytest.mark.parametrize("argument", ["sizes=[0]", "width=0", "sizes=[]"])
def test_impossible_sizes_are_refused(command, argument):
    assert "must be at least 1" in command(bench, "retrieval", argument).mistake
