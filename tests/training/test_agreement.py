"""What ranks agree on in every step: one rank has the NaN or the signal, and all do the same.

``be_a_rank`` is what each rank does.
"""

import copy
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmlm.core.distributed import gather_objects
from mmlm.core.stop import SIGNALS, StopRequest
from mmlm.data.unreadable import BadLimits
from mmlm.training.agreement import AsyncCopy, agree
from mmlm.training.loop import Interrupted
from mmlm.training.messages import NonFiniteLoss, TooManyUnreadable
from mmlm.training.replicated import Replicated, unwrapped
from tests.ranks import run_ranks
from tests.toy_run import Run, ToyLoader, expected_weights, make_run, states_equal, timeless

STEPS = 7


def tensor(value: float) -> Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "skip", "overflowed"),
    [
        (1.0, 2.0, None, False, False),
        (math.nan, math.nan, None, True, False),
        (1.0, math.inf, None, True, False),
        (1.0, math.inf, 8.0, True, True),
        (math.inf, math.nan, 8.0, True, False),
        (1.0, math.nan, 1.0, True, False),
    ],
)
def test_what_the_device_does_is_what_the_host_reads_later(loss, norm, scale, skip, overflowed):
    given = None if scale is None else tensor(scale)
    agreement = agree(tensor(loss), tensor(norm), StopRequest().flags(), given)
    verdict = agreement.verdict()
    assert (bool(agreement.skip), bool(agreement.overflowed)) == (skip, overflowed)
    assert (verdict.updated, verdict.overflowed, verdict.signal_name) == (not skip, overflowed, None)
    assert verdict.loss == pytest.approx(loss, nan_ok=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_read_by_its_name(number):
    assert agree(tensor(1.0), tensor(1.0), StopRequest(number.name).flags(), None).verdict().signal_name == number.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_reading_later_waits_for_no_later_work():
    large = torch.randn(4096, 4096, device="cuda")
    later = AsyncCopy(torch.ones(3, dtype=torch.float64, device="cuda"))
    for _ in range(200):
        large = large @ large / 64
    assert later.read() == [1, 1, 1]
    assert not torch.cuda.current_stream().query()


# Several ranks


def make(number: int, nan_at: tuple[int, ...] = (), **settings) -> Run:
    """A run over ranks whose gradients are averaged; only rank 1 has NaN."""
    run = make_run(ToyLoader(corrupt={1: (f"{number}.png: is damaged",)}), nan_at=nan_at if number else (), **settings)
    run.state.train_step = DistributedDataParallel(run.toy)
    return run


def load(run: Run, saved: dict[str, object]) -> Run:
    run.toy.load_state_dict(saved["weights"])
    run.state.load_state_dict(copy.deepcopy(saved))
    return run


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Trains in several ways, and leaves what came of it in ``folder``."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=size, timeout=timedelta(seconds=120)
    )
    assert gather_objects({"rank": number}) == [{"rank": 0}, {"rank": 1}]
    skipped = make(number, nan_at=(2,)).go(steps=STEPS, log_every=5)
    straight = make(number, noise=0.3).go(steps=STEPS, log_every=5)

    stopped = make(number, noise=0.3)
    stopped.toy.signal_at = 3 if number else None
    with pytest.raises(Interrupted) as interrupted:
        stopped.go(steps=STEPS, log_every=5)
    saved = stopped.recorder.states[interrupted.value.step]
    before = saved["windows"]
    resumed = load(make(number, noise=0.3), saved).go(steps=STEPS, log_every=5)

    failed = make(number, nan_at=(1,))
    with pytest.raises(NonFiniteLoss) as failure:
        failed.go(steps=STEPS, max_skipped_steps=0)

    # Of each batch, rank 0 has the first two positions and rank 1 the next two: 3, 4 and 5 are bad, in two batches.
    bad = make(number)
    places = {0: (), 1: (4, 5)} if number == 0 else {0: (3,)}
    bad.state.loader = ToyLoader(corrupt={n: tuple(f"{p}.png: is empty" for p in at) for n, at in places.items()})
    bad.state.loader.corrupt_at = places
    with pytest.raises(TooManyUnreadable) as too_many:
        bad.go(steps=STEPS, bad_limits=BadLimits(None, 3, 1000))

    unfreezing = make(number, noise=0.3)
    unfreezing.state.train_step = Replicated(unfreezing.toy)  # whose reducer is made anew
    other = torch.optim.SGD([{"params": [unfreezing.toy.weight], "peak_lr": 0.1}], lr=0.1)
    unfreezing.state.optimizer_for = lambda step, old: other if step >= 3 else old
    unfreezing.go(steps=STEPS)
    assert unwrapped(unfreezing.state.train_step) is unfreezing.toy
    assert unfreezing.state.train_step is not unfreezing.toy

    found = {
        "skipped": skipped.toy.weight.detach(),
        "skipped rows": timeless(skipped.recorder.rows),
        "skipped says": skipped.console.getvalue(),
        "straight": straight.toy.weight.detach(),
        "draws": straight.toy.draws,
        "stopped at": (interrupted.value.step, interrupted.value.signal_name),
        "windows": before,
        "the same": states_equal(resumed.recorder.states[STEPS], straight.recorder.states[STEPS]),
        "the same rows": timeless(stopped.recorder.rows + resumed.recorder.rows) == timeless(straight.recorder.rows),
        "names": list(resumed.state.weights()),
        "failed": str(failure.value),
        "too many": str(too_many.value),
        "count": bad.recorder.states[max(bad.recorder.states)]["bad"],
        "unfreezing": unfreezing.toy.weight.detach(),
        "corrupt": straight.console.getvalue(),
    }
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_skip_stop_and_go_on_together(tmp_path):
    first, second = run_ranks(tmp_path, 2, "tests.training.test_agreement", timeout=240)
    for name in ("skipped", "straight", "unfreezing"):
        assert torch.equal(first[name], second[name]), name
    # One update of seven is missing: that of the batch whose loss is not finite on rank 1 only.
    assert first["skipped"].item() == pytest.approx(expected_weights(STEPS - 1)[-1], rel=1e-5)
    assert first["skipped rows"] == second["skipped rows"]
    assert first["skipped rows"][0][2]["train/skipped_steps"] == 1
    for each in (first, second):
        assert "(error nan, gradient norm nan) on the batch of rank 1 image4, image5;" in each["skipped says"]
        assert each["stopped at"] == (5, "SIGTERM")
        assert each["the same"]
        assert each["the same rows"]
        assert each["names"] == ["weight", "seen"]
        assert "gradient norm nan) on the batch of rank 1 image2, image3; that is update 1" in each["failed"]
        assert each["too many"].startswith(
            "3 examples in a row cannot be read (data.max_bad_in_a_row=3): 3 is empty; first: 3.png: is empty; 4.png"
        )
        assert each["count"] == {"epoch": 0, "bad": 3, "row": 3, "last": 5}
        assert "epoch 0: 2 images could not be decoded: 0.png: is damaged; 1.png: is damaged" in each["corrupt"]
    assert not set(first["draws"]) & set(second["draws"])
    assert len(first["windows"]) == 2
