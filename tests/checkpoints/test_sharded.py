"""Sharded checkpoints: saved by 2 real gloo processes under FSDP2, read by any number of ranks, and by none.

``be_a_rank`` is what each rank does.
"""

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmlm.checkpoints import checkpoint
from mmlm.checkpoints.checkpoint import (
    CorruptCheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from mmlm.checkpoints.nested import map_leaves
from mmlm.checkpoints.writer import CheckpointWriter
from mmlm.core.distributed import agreed
from mmlm.core.errors import UserError
from mmlm.experiment.saved_run import exported_weights
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.optim.optimizers import Optimizer, OptimizerPair
from mmlm.optim.state import load_optimizer_state_by_name, optimizer_state_by_name
from mmlm.record.folder import CHECKPOINTS
from tests.equality import assert_same
from tests.ranks import run_ranks


class Toy(nn.Module):
    """A tied embedding, rows that no even number of ranks divides, fewer rows than ranks, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 5)
        self.narrow = nn.Linear(5, 1)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("count", torch.tensor(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.embedding(tokens)
        return self.head(states).square().mean() + self.narrow(self.hidden(states).tanh()).square().mean()


def make_optimizer(module: Toy) -> Optimizer:
    others = [module.embedding.weight, module.hidden.bias, *module.narrow.parameters(), *module.unused.parameters()]
    adamw = torch.optim.AdamW([{"params": others, "peak_lr": 0.1}], lr=0.1, fused=True)
    return OptimizerPair(torch.optim.SGD([module.hidden.weight], lr=0.1, momentum=0.9), adamw)


def take_steps(module: Toy, optimizer: Optimizer, ema: ExponentialMovingAverage, steps: range) -> None:
    for step in steps:
        module(torch.tensor([step % 7, 3, 5])).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(module, step)


def parts_of(module: Toy, optimizer: Optimizer, ema: ExponentialMovingAverage) -> tuple[dict[str, Any], dict[str, Any]]:
    state = {"optimizer": optimizer_state_by_name(module, optimizer), "position": 12, "rng": torch.get_rng_state()}
    return {"model": module.state_dict(), "ema": ema.tensors}, state


def full(tree: Any) -> Any:
    """Copies, with the whole of sharded tensors."""

    def copy(path: str, leaf: Any) -> Any:
        whole = leaf.full_tensor() if isinstance(leaf, DTensor) else leaf
        return whole.clone() if isinstance(whole, Tensor) else whole

    return map_leaves(tree, copy)


# What ranks do


def save_on_this_rank(folder: Path, rank: int) -> dict[str, Any]:
    """Three checkpoints: written in the background, at once, and one that fails on rank 1."""
    module = fully_shard(Toy(seed=0))
    optimizer, ema = make_optimizer(module), ExponentialMovingAverage(module, 0.9)
    take_steps(module, optimizer, ema, range(2))
    root = folder / CHECKPOINTS
    with CheckpointWriter(root, keep_last=9) as writer:
        expected = full(parts_of(module, optimizer, ema))
        writer.save(2, *parts_of(module, optimizer, ema), ("loss", 0.5))
        take_steps(module, optimizer, ema, range(2, 4))  # while it is written
    going_on = full(parts_of(module, optimizer, ema))
    save_checkpoint(root, 4, *parts_of(module, optimizer, ema))

    write = HuggingFaceStorageWriter.write_data
    if rank == 1:
        HuggingFaceStorageWriter.write_data = lambda *arguments: full_disk()
    failures = []
    at_once = partial(save_checkpoint, root, 6, *parts_of(module, optimizer, ema))
    for attempt in (at_once, partial(save_in_background, root, 6, *parts_of(module, optimizer, ema))):
        try:
            attempt()
        except UserError as error:
            failures.append(str(error))
    HuggingFaceStorageWriter.write_data = write
    weights, state = parts_of(module, optimizer, ema)
    if rank == 1:
        weights["model"]["mine"] = weights["model"]["hidden.weight"]
    try:
        save_checkpoint(root, 8, weights, state)
    except (ValueError, RuntimeError) as error:
        failures.append(str(error))
    # Not sharded: only the first rank writes, and all of them hear of it.
    save_in_background(root, 9, {"model": {"weight": torch.ones(2)}}, {"rank": rank})
    if rank == 0:
        checkpoint.save_weights = lambda *arguments: full_disk()
    try:
        save_in_background(root, 10, {"model": {"weight": torch.ones(2)}}, {})
    except UserError as error:
        failures.append(str(error))
    return {"expected": expected, "going_on": going_on, "failures": failures}


def save_in_background(root: Path, step: int, weights: dict[str, Any], state: dict[str, Any]) -> None:
    with CheckpointWriter(root, keep_last=9) as writer:
        writer.save(step, weights, state)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def load_on_this_rank(folder: Path) -> dict[str, Any]:
    """What is loaded into sharded parameters and optimizer state, from each checkpoint, then trained on."""
    found = {}
    for name in ("step=000002", "step=000003"):
        module = fully_shard(Toy(seed=1))
        optimizer, ema = make_optimizer(module), ExponentialMovingAverage(module, 0.9)
        loaded = load_checkpoint(folder / CHECKPOINTS / name, module.state_dict())
        for tensor in (loaded.weights["model"]["hidden.weight"], loaded.weights["ema"]["narrow.bias"]):
            assert isinstance(tensor, DTensor)
        moments = loaded.state["optimizer"]["state"]["embedding.weight"]
        assert isinstance(moments["exp_avg"], DTensor)
        assert not isinstance(moments["step"], DTensor)
        assert loaded.weights["model"]["head.weight"] is loaded.weights["model"]["embedding.weight"]
        module.load_state_dict(loaded.weights["model"])
        ema.load(loaded.weights["ema"])
        assert load_optimizer_state_by_name(module, optimizer, loaded.state["optimizer"]) == []
        weights, state = parts_of(module, optimizer, ema)
        del state["rng"]
        found[name] = full((weights, state))
        take_steps(module, optimizer, ema, range(2, 4))
        weights, state = parts_of(module, optimizer, ema)
        found[f"{name} going on"] = full((weights, state))
        # The whole state, handed to sharded parameters.
        again = make_optimizer(module)
        load_optimizer_state_by_name(module, again, load_checkpoint(folder / CHECKPOINTS / name).state["optimizer"])
        assert_same(full(optimizer_state_by_name(module, again)), found[name][1]["optimizer"])
    return found


def be_a_rank(folder: Path, rank: int, size: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    found = load_on_this_rank(folder) if (folder / CHECKPOINTS).exists() else save_on_this_rank(folder, rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# Tests


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that 2 ranks saved into, and what they say was in memory."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_ranks(folder, 2, "tests.checkpoints.test_sharded")


@pytest.mark.slow
def test_a_process_without_a_group_reads_all_of_it(saved):
    folder, said = saved
    for name, key in (("step=000002", "expected"), ("step=000004", "going_on")):
        loaded = load_checkpoint(folder / CHECKPOINTS / name)
        weights, state = said[0][key]
        assert_same(dict(loaded.weights), weights)
        assert_same(dict(loaded.state), state)
        assert loaded.weights["ema"]["head.weight"] is not loaded.weights["model"]["head.weight"]
        assert loaded.weights["model"]["head.weight"] is loaded.weights["model"]["embedding.weight"]


@pytest.mark.slow
def test_each_rank_writes_its_part(saved):
    folder, _ = saved
    parts = folder / CHECKPOINTS / "step=000002" / "sharded"
    assert sorted(part.name for part in parts.iterdir()) == ["ema", "model", "state"]
    sizes = [file.stat().st_size for file in (parts / "model").iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_ranks_loads_it_bit_for_bit(saved, tmp_path, size):
    source, said = saved
    folder = tmp_path / "ranks"
    folder.mkdir()
    shutil.copytree(source / CHECKPOINTS / "step=000002", folder / CHECKPOINTS / "step=000002")
    # The same, saved by one process that holds all of it: what a run under DDP leaves.
    plain = load_checkpoint(source / CHECKPOINTS / "step=000002")
    save_checkpoint(folder / CHECKPOINTS, 3, plain.weights, plain.state)
    weights, state = said[0]["expected"]
    state = {key: value for key, value in state.items() if key != "rng"}
    for loaded in run_ranks(folder, size, "tests.checkpoints.test_sharded"):
        for name in ("step=000002", "step=000003"):
            assert_same(loaded[name], (weights, state))
            if size == 2:
                later_weights, later = loaded[f"{name} going on"]
                assert_same(later_weights, said[0]["going_on"][0])
                assert_same(later["optimizer"], said[0]["going_on"][1]["optimizer"])


@pytest.mark.slow
def test_a_plain_module_goes_on_from_it(saved):
    folder, said = saved
    module = Toy(seed=1)
    optimizer = make_optimizer(module)
    loaded = load_checkpoint(folder / CHECKPOINTS / "step=000002")
    module.load_state_dict(loaded.weights["model"])
    assert load_optimizer_state_by_name(module, optimizer, loaded.state["optimizer"]) == []
    assert_same(optimizer_state_by_name(module, optimizer), said[0]["expected"][1]["optimizer"])
    ema = ExponentialMovingAverage(module, 0.9)
    ema.load(loaded.weights["ema"])
    take_steps(module, optimizer, ema, range(2, 4))
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, said[0]["going_on"][0]["model"][name])


@pytest.mark.slow
def test_one_group_is_read_alone(saved, tmp_path):
    folder = tmp_path / "step=000002"
    shutil.copytree(saved[0] / CHECKPOINTS / "step=000002", folder)
    shutil.rmtree(folder / "sharded" / "ema")
    shutil.rmtree(folder / "sharded" / "state")
    assert_same(load_weights(folder), saved[1][0]["expected"][0]["model"])
    with pytest.raises(CorruptCheckpointError, match=r"sharded/ema/.* is missing"):
        load_weights(folder, "ema")
    with pytest.raises(UserError, match="has no 'other' weights; there are: ema, model"):
        load_weights(folder, "other")


@pytest.mark.slow
def test_a_run_exports_its_best_checkpoint_from_it(saved, tiny_config):
    folder, said = saved
    for decay, group in (("null", "model"), ("0.9", "ema")):
        step, weights = exported_weights(folder, tiny_config(f"train.ema_decay={decay}"))
        assert step == 2
        assert_same(weights, said[0]["expected"][0][group])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_file_of_it_is_found(saved, tmp_path, damage):
    root = tmp_path / CHECKPOINTS
    for name in ("step=000002", "step=000004"):
        shutil.copytree(saved[0] / CHECKPOINTS / name, root / name)
    newest = root / "step=000004"
    files = [file for file in newest.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert len(files) == 3 + 3 * 2
    for file in files:
        content = file.read_bytes()
        if damage == "flip":
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        elif damage == "truncate":
            file.write_bytes(content[:-1])
        else:
            file.unlink()
        folder, messages = latest_checkpoint(root)
        assert folder == root / "step=000002"
        assert len(messages) == 1
        assert file.name in messages[0]
        with pytest.raises(CorruptCheckpointError, match=file.name):
            load_checkpoint(newest)
        file.write_bytes(content)
    assert latest_checkpoint(root) == (newest, [])


@pytest.mark.slow
def test_a_write_that_fails_on_one_rank_fails_on_all_and_leaves_the_one_before(saved):
    folder, said = saved
    for rank in (0, 1):
        at_once, in_background, names, plain = said[rank]["failures"]
        for message in (at_once, in_background):
            assert "step=000006 could not be written (No space left on device); step=000004 is intact" in message
        assert "'mine' is not on all of them" in names
        assert "step=000010 could not be written (No space left on device); step=000009 is intact" in plain
    assert sorted(path.name for path in (folder / CHECKPOINTS).iterdir() if path.name.startswith("step")) == [
        "step=000002",
        "step=000004",
        "step=000009",
    ]
    assert load_checkpoint(folder / CHECKPOINTS / "step=000009").state == {"rank": 0}
    assert not list((folder / CHECKPOINTS).glob(".saving-step=000006"))


def test_one_process_agrees_with_itself():
    with agreed(None):
        pass
    with pytest.raises(KeyError, match="x"), agreed(None):
        raise KeyError("x")
