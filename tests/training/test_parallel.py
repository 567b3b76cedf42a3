"""A step is the same on any number of ranks, whether each has all of the model or a share: real gloo processes.

What every rank computes is compared with one process on the joined batch. ``be_a_rank`` is what each rank does. Parts
and objectives of every kind are in ``tests/exactness/test_shared.py``.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmlm.core.batch import Batch
from mmlm.core.distributed import full_tensor, local_part, rank, sum_over_ranks, world_size
from mmlm.core.errors import UserError
from mmlm.core.views import StepKey
from mmlm.experiment.compatibility import check_compatible
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.optim.freeze import FreezePlan
from mmlm.optim.optimizers import AdamW, carry_state, clip_gradients
from mmlm.training.diagnosis import WeightsBefore
from mmlm.training.gradients import backward
from mmlm.training.parallel import DDP, FSDP, Parallel, prepare
from mmlm.training.repeated_blocks import repeated_blocks
from mmlm.training.replicated import Replicated
from mmlm.training.train_step import TrainStep, inner
from tests.exactness.cells import STEP_KEY, SUMS, make_step, share_of, whole_batch
from tests.ranks import run_ranks

CPU = torch.device("cpu")
STEPS = 3
PARALLEL: Mapping[str, Parallel] = {"DDP": DDP(), "FSDP": FSDP(), "FSDP kept": FSDP(reshard_after_forward=False)}
TRAINED = (("coca with matching", torch.float64, 2), ("coca", torch.float32, 2))
"""Sums, dtypes and images a pass: ranks have unequal numbers of passes, one of four fewer images than passes."""
TOLERANCES = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}
Results = dict[str, Tensor]


def optimizer() -> AdamW:
    """With an epsilon that leaves gradients of 0 (of a key's bias) at 0: rounding would be steps of full size."""
    return AdamW(lr=0.01, eps=1e-3)


def gradients(step: TrainStep) -> Results:
    """Every gradient, whole."""
    named = step.named_parameters()
    return {f"gradient {name}": full_tensor(p.grad).clone() for name, p in named if p.grad is not None}


def weights(step: nn.Module) -> Results:
    """Every tensor, whole."""
    return {f"weight {name}": tensor for name, tensor in whole(inner(step).state_dict()).items()}


def whole(tensors: Results) -> Results:
    """Each gathered from all ranks, and copied."""
    return {name: full_tensor(tensor.detach()).clone() for name, tensor in tensors.items()}


def trained(
    step: TrainStep, parallel: Parallel, batch: Batch, micro_batch: int, step_key: StepKey = STEP_KEY
) -> Results:
    """Losses, gradients, clipped norms and weights of a few optimizer steps."""
    prepared, found = prepare(step, parallel, CPU), {}
    updates = optimizer()(step)
    for number in range(STEPS):
        loss = backward(prepared, batch.split(micro_batch), step_key)
        found[f"loss {number}"] = sum_over_ranks(loss.total)
        found |= gradients(step) if number == 0 else {}
        found[f"norm {number}"] = clip_gradients(prepared.parameters(), 0.5)
        updates.step()
        updates.zero_grad()
    return found | weights(prepared)


def moved(parallel: Parallel, batch: Batch) -> Results:
    """How far a step moves the weights of each part."""
    step = make_step(SUMS["coca"])
    prepared = prepare(step, parallel, CPU)
    updates = optimizer()(step)
    backward(prepared, batch.split(2), STEP_KEY)
    before = WeightsBefore(prepared)
    updates.step()
    return {name: torch.tensor(value) for name, value in before.update_ratios().items()}


def evaluated(parallel: Parallel, batch: Batch) -> Results:
    """Embeddings, logits and attention before and after training; a rank calls parts as often as it likes."""
    step = make_step(SUMS["coca"])
    prepared = prepare(step, parallel, CPU)
    average, updates, found = ExponentialMovingAverage(step, 0.5), optimizer()(step), {}
    for number in range(2):
        step.eval()
        with torch.no_grad(), parallel.whole(prepared):
            for time in range(1 + rank()):
                found |= {f"{number} {name}": value for name, value in looked_at(step).items()}
                assert time <= rank()
        step.train()
        backward(prepared, [batch], STEP_KEY)
        found |= {f"{number} {name}": value for name, value in gradients(step).items()}
        updates.step()
        updates.zero_grad()
        average.update(step, number)
    found |= {f"average {name}": tensor for name, tensor in whole(average.tensors).items()}
    own = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    step.load_state_dict(average.tensors)
    with torch.no_grad(), parallel.whole(prepared):
        found |= {f"average {name}": value for name, value in looked_at(step).items()}
    step.load_state_dict(own)
    return found | weights(prepared)


def looked_at(step: TrainStep) -> Results:
    """What evaluation asks a model for, on the whole batch."""
    batch, model = whole_batch(), step.model
    features = model.encode_image(batch.images)
    cache = model.start_decoding(features)
    return {
        "image": features.embedding,
        "text": model.encode_text(batch.tokens, batch.lengths),
        "states": model.caption_hidden(features, batch),
        "logits": torch.cat([model.decode(batch.tokens[:8, i : i + 1], cache) for i in range(3)], dim=1),
        "attention": model.attention_maps(batch),
    }


def unfrozen(parallel: Parallel, batch: Batch) -> Results:
    """The encoder trains from the second step on, with an optimizer made anew."""
    source = make_step(SUMS["coca"])
    step = TrainStep(source.model, source.objective, FreezePlan(("encoder",), unfreeze={"encoder": 1})).train()
    prepared = prepare(step, parallel, CPU)
    updates, found = optimizer()(step), {}
    for number in range(STEPS):
        if step.freeze_for(number):
            updates = carry_state(updates, optimizer()(step))
        backward(prepared, batch.split(2), STEP_KEY)
        found |= {f"{number} {name}": gradient for name, gradient in gradients(step).items()}
        updates.step()
        updates.zero_grad()
    return found | weights(prepared)


Case = Callable[[], Results]


def cases(batch: Batch) -> Iterator[tuple[tuple[str, str], Case]]:
    """Everything that is compared, by what it is and by how ranks share it."""
    for how, parallel in PARALLEL.items():
        for name, dtype, micro in TRAINED[:1] if how == "FSDP kept" else TRAINED:
            key = f"trained {name} {dtype}", f"{how}, {micro} images a pass"
            step = make_step(SUMS[name], dtype)
            yield key, lambda step=step, p=parallel, m=micro: trained(step, p, batch, m)
        if how == "FSDP kept":
            continue
        yield ("moved", how), lambda p=parallel: moved(p, batch)
        yield ("evaluated", how), lambda p=parallel: evaluated(p, batch)
        yield ("unfrozen", how), lambda p=parallel: unfrozen(p, batch)


def begins_as_on_rank_0() -> None:
    """Whatever a rank has made at random."""
    for parallel in (DDP(), FSDP()):
        step = make_step(SUMS["coca"])
        expected = {name: tensor.clone() for name, tensor in step.state_dict().items()}
        with torch.no_grad():
            for parameter in step.parameters():
                parameter += rank()
        prepared = prepare(step, parallel, CPU)
        backward(prepared, [share_of(rank(), world_size())], STEP_KEY)
        for name, tensor in whole(inner(prepared).state_dict()).items():
            assert torch.equal(tensor, expected[name]), name


def shares() -> Results:
    """How many numbers of the weights, gradients and optimizer state this rank holds; which kinds of tensors."""
    step = make_step(SUMS["coca"])
    total = sum(parameter.numel() for parameter in step.parameters())
    prepared = prepare(step, FSDP(), CPU)
    assert prepared is step
    assert all(isinstance(block, FSDPModule) for block in (step, *repeated_blocks(step.model)))
    updates = optimizer()(step)
    backward(prepared, [share_of(rank(), world_size())], STEP_KEY)
    updates.step()
    state = [tensor for kept in updates.state_dict()["state"].values() for tensor in kept.values() if tensor.ndim]
    held = [[local_part(t).numel() for t in kind] for kind in (step.parameters(), state)]
    assert all(isinstance(p, DTensor) == isinstance(p.grad, DTensor) == (p.ndim > 0) for p in step.parameters())
    return {"total": torch.tensor(total), "weights": torch.tensor(sum(held[0])), "state": torch.tensor(sum(held[1]))}


def names_of_ddp() -> list[str]:
    """Names of what is inside, for checkpoints and averages."""
    prepared = prepare(make_step(SUMS["coca"]), DDP(), CPU)
    assert isinstance(prepared, Replicated)
    return list(ExponentialMovingAverage(inner(prepared), 0.9).tensors)


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Joins the group, computes every case, and leaves what it found in ``folder``."""
    warnings.filterwarnings(
        "ignore", "Grad strides do not match bucket view strides"
    )  # of convolutions: a little slower
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=size, timeout=timedelta(seconds=120)
    )
    found = {key: case() for key, case in cases(share_of(number, size))}
    begins_as_on_rank_0()
    torch.save({"cases": found, "shares": shares(), "names": names_of_ddp()}, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> Mapping[str, Results]:
    """What one process finds on the whole batch, by what it is."""
    found: dict[str, Results] = {}
    for (what, _), case in cases(whole_batch()):
        if what not in found:
            found[what] = case()
    return found


@pytest.mark.slow
def test_ranks_change_nothing_however_they_share_the_work(tmp_path, alone):
    size = 4
    for each in run_ranks(tmp_path, size, "tests.training.test_parallel"):
        assert {what for what, _ in each["cases"]} == alone.keys()
        for (what, how), found in each["cases"].items():
            expected = alone[what]
            assert found.keys() == expected.keys(), (what, how)
            tolerance = TOLERANCES[torch.float32 if "float32" in what else torch.float64]
            for name, value in expected.items():
                assert type(found[name]) is Tensor, (what, how, name)
                torch.testing.assert_close(
                    found[name], value, **tolerance, msg=lambda m, n=(what, how, name): f"{n}: {m}"
                )
        assert each["names"] == list(make_step(SUMS["coca"]).state_dict())
        held = each["shares"]
        # Rows are shared out: a rank may hold one more of each tensor.
        assert held["weights"] < 1.25 * held["total"] / size
        assert held["state"] < 1.25 * 2 * held["total"] / size


def test_what_is_compared_says_something(alone):
    """Training moves the weights, frozen parts do not move before their step, clipping clips."""
    start = make_step(SUMS["coca"]).state_dict()
    start = {name: tensor.float() for name, tensor in start.items()}
    what = alone["trained coca torch.float32"]
    assert all(what[f"norm {number}"] > 0.5 for number in range(STEPS))
    assert what["loss 2"] < what["loss 0"]
    moved = [name for name, tensor in start.items() if not torch.allclose(what[f"weight {name}"], tensor, atol=1e-4)]
    assert len(moved) > 0.8 * len(start)
    first = {name for name in alone["unfrozen"] if name.startswith("0 gradient model.encoder")}
    second = {name for name in alone["unfrozen"] if name.startswith("1 gradient model.encoder")}
    assert not first
    assert len(second) > 10


@pytest.mark.parametrize("parallel", [DDP(), FSDP()])
def test_one_process_is_not_wrapped(parallel):
    step = make_step(SUMS["coca"])
    assert prepare(step, parallel, CPU) is step
    assert not isinstance(step, FSDPModule)
    with parallel.whole(step):
        pass
    tensors = whole(step.state_dict())
    assert list(tensors) == list(step.state_dict())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in step.state_dict().items())


@pytest.mark.parametrize("limit", [0.01, 1e6, torch.inf])
def test_clipping_is_torch_s(limit):
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(2))]
    parameters[0].grad, parameters[1].grad = torch.randn(3, 2), torch.randn(())
    other = [nn.Parameter(parameter.detach()) for parameter in parameters]
    other[0].grad, other[1].grad = parameters[0].grad.clone(), parameters[1].grad.clone()
    assert torch.equal(clip_gradients(iter(parameters), limit), nn.utils.clip_grad_norm_(other, limit))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(parameters[:2], other[:2], strict=True))
    assert clip_gradients(parameters[2:], limit) == 0


def test_what_shares_of_weights_cannot_do_is_refused(tiny_config):
    check_compatible(tiny_config("parallel=fsdp"))
    check_compatible(tiny_config("optim=muon"))
    with pytest.raises(UserError, match=r"^parallel: fsdp holds shares of matrices .* optim=adamw or parallel=ddp$"):
        check_compatible(tiny_config("parallel=fsdp", "optim=muon"))
    averaged = ("objective=coca_self_distillation", "teacher.ema=true", "train.ema_decay=0.9")
    with pytest.raises(UserError, match=r"^parallel: fsdp holds shares of the moving average .* teacher.run$"):
        check_compatible(tiny_config("parallel=fsdp", *averaged))
    with pytest.raises(UserError, match=r"^parallel.bucket_mb: 0 must be at least 1 megabyte$"):
        check_compatible(tiny_config("parallel.bucket_mb=0"))
