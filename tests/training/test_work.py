"""What rows of metrics say of speed and data: sums over steps and ranks, of which shares are taken.

``be_a_rank`` is what each of several ranks does.
"""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmlm.core.batch import Batch, BatchTally
from mmlm.core.peak_flops import peak_of
from mmlm.core.precision import Precision
from mmlm.model.text_places import TextPlaces
from mmlm.record.metrics import read_metrics
from mmlm.training import loop
from mmlm.training.window import Window
from mmlm.training.work import FIGURES, Spent, Work
from tests.model.conftest import build_batch
from tests.ranks import run_ranks
from tests.toy_run import make_run

CPU = torch.device("cpu")


def batch_of(lengths: tuple[int, ...], **tally: object) -> Batch:
    batch = build_batch(lengths=lengths, image_index=range(len(lengths)), num_images=len(lengths))
    return Batch(**{**batch.__dict__, "tally": BatchTally(**tally)})


FIRST = Work.of([batch_of((5, 3), cut_captions=1, cut_tokens=7, by_source={"a": 2})], TextPlaces(8, 10))
SECOND = Work.of(
    [batch_of((4,), by_source={"b": 1}), batch_of((8, 3, 3), cut_captions=2, cut_tokens=2)], TextPlaces(18, 30)
) + Work(waited=1.5)


def test_work_is_what_the_batches_hold():
    assert Work(2, 2, 8, 8, 10, 1, 7, 0.0, {"a": 2}) == FIRST
    assert Work(4, 4, 18, 18, 30, 2, 2, 1.5, {"b": 1}) == SECOND
    assert Work(6, 6, 26, 26, 40, 3, 9, 1.5, {"a": 2, "b": 1}) == FIRST + SECOND
    assert Work.restored([FIRST.state_dict(), SECOND.state_dict()]) == FIRST + SECOND


def test_shares_are_those_of_the_sums():
    values = Spent(FIRST + SECOND, seconds=2.0, ranks=3, peak_memory=5e8).values()
    expected = {
        "tokens_per_second": 13.0,
        "data_wait": 1.5 / 6,
        "padding": 1 - 26 / 40,
        "cut_captions": 3 / 6,
        "cut_tokens": 3.0,
        "peak_memory": 0.5,
        "examples_from/a": 2,
        "examples_from/b": 1,
    }
    assert values == pytest.approx(expected)
    assert {name.partition("/")[0] for name in values} | {"tflops_per_second", "mfu"} == set(FIGURES)
    nothing = Spent(Work(), 1.0, 1, 0.0).values()
    assert set(nothing.values()) == {0.0}


def be_a_rank(folder: Path, rank: int, size: int) -> None:
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    spent = Spent.over_ranks((FIRST, SECOND)[rank], seconds=2.0 + rank, device=CPU)
    torch.save({"work": spent.work.state_dict(), "seconds": spent.seconds, "ranks": spent.ranks}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_tell_the_sum_of_all(tmp_path):
    for found in run_ranks(tmp_path, 2, __name__):
        assert Work.restored([found["work"]]) == FIRST + SECOND
        assert (found["seconds"], found["ranks"]) == (2.5, 2)


def test_a_window_takes_its_work_through_a_checkpoint(monkeypatch):
    monkeypatch.setattr("mmlm.training.window.rank", lambda: 0)
    states = [Window(work=FIRST).state_dict(), Window(work=SECOND).state_dict()]
    old = {name: value for name, value in states[1].items() if name != "work"}
    assert Window.restored([old], 1, CPU).work == Work()
    for number, expected in ((0, FIRST), (1, SECOND)):
        monkeypatch.setattr("mmlm.training.window.rank", lambda number=number: number)
        assert Window.restored(states, 2, CPU).work == expected
        assert Window.restored(states, 3, CPU).work == (Work() if number else FIRST + SECOND)


def test_waiting_for_data_is_told_as_a_share_of_training(monkeypatch):
    """Each batch takes a second to come, and nothing else takes any time."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    run = make_run()
    make = run.state.loader.__class__.__iter__

    def slow(loader):
        for batch in make(loader):
            now[0] += 1
            yield batch

    monkeypatch.setattr(run.state.loader.__class__, "__iter__", slow)
    run.go(steps=3, log_every=3)
    ((_, row),) = run.recorder.training_rows()
    assert row["train/data_wait"] == 1.0
    assert row["train/tokens_per_second"] == 6.0
    assert row.keys() >= {"train/padding", "train/cut_captions", "train/cut_tokens", "train/peak_memory"}


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H200", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("Tesla V100-SXM2-16GB", 125, 15.7),
        ("NVIDIA B200", 2250, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("An accelerator of tomorrow", None, None),
    ],
)
def test_the_peak_is_known_by_the_name(name, half, single):
    scaled = [None if flops is None else flops * 1e12 for flops in (half, half, single)]
    assert [peak_of(name, precision) for precision in (Precision.bf16, Precision.fp16, Precision.fp32)] == scaled


def test_every_row_of_a_run_says_it(trained):
    folder = trained("train.steps=2", "train.log_every=1", "data.max_tokens=4")
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]
    names = {f"train/{name}" for name in FIGURES} - {"train/mfu", "train/examples_from"}
    for row in rows:
        assert names <= row.keys()
        assert row["train/tflops_per_second"] > 0
        assert row["train/tokens_per_second"] > 0
        assert 0 <= row["train/padding"] < 1
        assert 0 < row["train/cut_captions"] <= 1
        assert row["train/cut_tokens"] >= 1
        assert row["train/peak_memory"] > 0.05
