"""The options of training, alone and in pairs, by the real command: what promises to change nothing changes nothing.

The cells hold every pair of options that can stand together. Each is trained for some steps, and every value that it
logs is that of a plain cell: one process, nothing compiled or computed again, whole batches, no average, nothing saved
or evaluated on the way. Precision, objective, optimizer, schedule, clipping and freeze plan of the plain cell are those
of the cell, since they may change what is trained. FSDP is two real gloo processes (DDP has ``test_shared.py``).
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmlm.experiment.config_file import config_text, parse_config
from mmlm.experiment.run_identity import run_folder
from mmlm.launch.meeting import Meeting
from mmlm.launch.rank_info import RankInfo, Starter
from mmlm.record.metrics import read_metrics
from mmlm.run.ranks import train_run
from mmlm.training.reporter import OF_THE_CLOCK
from tests.conftest import Outcome
from tests.covering import Row, covering, together
from tests.ranks import run_ranks

Values = Sequence[Mapping[str, float]]
"""What a run logs of its training, a row for each step."""

SMALL = (
    "evaluators=retrieval",
    "samples.examples=1",
    "samples.queries=1",
    "samples.attention=0",
    "train.batch_size=6",
    "train.diagnose_every=1",
)
"""Of every cell. A rank of two has three images, in micro-batches of two and one."""
FREE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "ranks": {"alone": (), "fsdp": ("parallel=fsdp",)},
    "compile": {"no": (), "compiled": ("train.compile=true",)},
    "checkpointing": {"no": (), "checkpointing": ("train.activation_checkpointing=true",)},
    "micro-batches": {"no": (), "micro-batches": ("train.micro_batch_size=2",)},
    "average": {"no": (), "average": ("train.ema_decay=0.9",)},
    "between": {
        "no": (),
        "evaluated and saved": (
            "train.eval_every=1",
            "train.save_every=1",
            "train.best_metric=validation/text_to_image/R@1",
            "train.spike.threshold=50",
        ),
    },
}
"""Options that promise to change nothing of what is trained; the first of each is the plain one."""
CHANGING: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "precision": {name: (f"train.precision={name}",) for name in ("fp32", "bf16", "fp16")},
    "objective": {name: (f"objective={name}",) for name in ("coca", "coca_matching")},
    "optim": {name: (f"optim={name}", "optim.lr=0.002") for name in ("muon", "adamw")},
    "schedule": {name: (f"schedule={name}", "schedule.warmup_steps=2") for name in ("cosine", "wsd", "constant")},
    "clipping": {"clipped": ("train.clip_norm=1.0",), "unclipped": ("train.clip_norm=null",)},
    "freeze": {
        "none": (),
        "lit for two steps": ("freeze=lit", "+freeze.unfreeze.encoder=2"),
        "llrd": ("freeze=llrd",),
        "lora": ("freeze=lora",),
    },
}
"""Options that may change what is trained."""
OPTIONS = {**CHANGING, **FREE}
FACTORS = {name: tuple(options) for name, options in OPTIONS.items()}
SCALE = 2.0**10
"""The first loss scale of float16: the real one makes the first steps overflow, which are left out and not logged."""
CLOSE, NEAR = 1e-3, 3e-2
"""How far a value may be from the plain cell's, as a share of it or of 1, whichever is larger. ``NEAR`` is for the loss
of the second and third step in float16 and bfloat16: in what order gradients are added shows in their last digit, and
an optimizer that divides by their size makes much of it where they are all but 0. Nothing else is compared there."""


def refused(row: Row) -> bool:
    """Muon needs whole matrices."""
    return row.get("ranks") == "fsdp" and row.get("optim") == "muon"


WANTED = [two for names in combinations(FACTORS, 2) for two in together(FACTORS, names)]
COVERED = covering(FACTORS, refused, WANTED)
ALONE = [row for row in COVERED.rows if row["ranks"] == "alone"]
SHARED = [row for row in COVERED.rows if row["ranks"] != "alone"]


def overrides(row: Row) -> tuple[str, ...]:
    """The command line of a cell, behind that of a tiny run."""
    return (*SMALL, *(token for name, option in row.items() for token in OPTIONS[name][option]))


def plain(row: Row) -> Row:
    """The plain cell that a cell has to equal."""
    return {**row, **{name: next(iter(options)) for name, options in FREE.items()}}


def named(row: Row) -> str:
    """A cell in words: what is not plain of it."""
    return ", ".join(option for name, option in row.items() if option != FACTORS[name][0]) or "plain"


def logged(folder: Path) -> Values:
    """What a run logged of its training."""
    return [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]


def same(found: Values, expected: Values, row: Row) -> None:
    """Every value of every step; in 16 bits every value of the first step and the loss of the others."""
    assert [one["step"] for one in found] == [one["step"] for one in expected] == [1, 2, 3], named(row)
    for one, other in zip(found, expected, strict=True):
        names = of_training(other)
        assert of_training(one) == names, named(row)
        is_exact = row["precision"] == "fp32" or one["step"] == 1
        for name in names if is_exact else {"train/loss"}:
            close = (CLOSE if is_exact else NEAR) * max(1.0, abs(other[name]))
            assert math.isclose(one[name], other[name], rel_tol=0, abs_tol=close), (
                f"{named(row)}: {name} of step {one['step']} is {one[name]} and not {other[name]}"
            )


def of_training(values: Mapping[str, float]) -> set[str]:
    """The names of what was computed, but for the padding: each rank and micro-batch fills up its own."""
    left_out = {f"train/{name}" for name in (*OF_THE_CLOCK, "padding")}
    return {name for name in values if name.startswith("train/")} - left_out


@contextmanager
def as_here() -> Iterator[None]:
    """Compiled blocks are captured by Dynamo and then run as they are.

    The compiler itself, which takes a minute, has a test of its own in ``tests/training/test_compiled.py``.
    """
    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Of Dynamo's own: what it looks at is none of ours.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        patch.setattr(torch, "compile", lambda forward, options: compile_(forward, backend="eager"))
        patch.setattr("mmlm.optim.loss_scale.FIRST_SCALE", SCALE)
        yield


@pytest.fixture
def as_in_ranks() -> Iterator[None]:
    """``as_here`` in this process."""
    with as_here():
        yield


@pytest.fixture(scope="module")
def plain_values() -> dict[str, Values]:
    """What plain cells logged, by their name, once each."""
    return {}


@pytest.fixture
def values_of(train_tiny: Callable[..., Outcome], tmp_path: Path) -> Callable[[Row], Values]:
    """``values_of(row)``: what the command logs of a cell, in this process."""

    def train(row: Row) -> Values:
        outcome = train_tiny(*overrides(row), "name=cell")
        assert outcome.status == 0, (named(row), outcome)
        folder = tmp_path / "runs/caption_base/cell/seed=0"
        values = logged(folder)
        shutil.rmtree(folder)
        return values

    return train


@pytest.fixture
def expected(plain_values: dict[str, Values], values_of: Callable[[Row], Values]) -> Callable[[Row], Values]:
    """``expected(row)``: what its plain cell logs."""

    def of(row: Row) -> Values:
        name = named(plain(row))
        if name not in plain_values:
            plain_values[name] = values_of(plain(row))
        return plain_values[name]

    return of


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Trains every cell that ranks share, one after the other."""
    told = json.loads((folder / "cells.json").read_text())
    with as_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmlm.reports.curves_section.draw_chart", lambda *lines, **how: "<svg></svg>")
        for attempt, text in enumerate(told["configs"], start=1):
            config = parse_config(text, "cells.json")
            here = RankInfo(number, number, size, port=told["port"], starter=Starter.local, attempt=attempt)
            assert train_run(config, run_folder(config), Meeting(here)) == 0, text
    torch.save({}, folder / f"{number}.pt")


def test_the_cells_hold_every_pair():
    """Counted again, without what chose them; what no cell holds is refused."""
    held = {frozenset(two) for row in COVERED.rows for two in combinations(row.items(), 2)}
    assert set(WANTED) - held == {frozenset({("ranks", "fsdp"), ("optim", "muon")})}


@pytest.mark.thorough
@pytest.mark.usefixtures("as_in_ranks")
@pytest.mark.parametrize("row", ALONE, ids=named)
def test_a_cell_of_one_process(row, values_of, expected):
    same(expected(row) if row == plain(row) else values_of(row), expected(row), row)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.usefixtures("as_in_ranks")
def test_cells_that_two_ranks_share(tmp_path, tiny_config, expected):
    configs = [tiny_config(*overrides(row), f"name=cell{index}") for index, row in enumerate(SHARED)]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"port": store.port, "configs": [config_text(config) for config in configs]}
    (tmp_path / "cells.json").write_text(json.dumps(told))
    run_ranks(tmp_path, 2, "tests.exactness.test_training_options")
    for row, config in zip(SHARED, configs, strict=True):
        same(logged(run_folder(config)), expected(row), row)
