"""Checkpoints in the background: training goes on at once, nothing it does then is saved, and no error is lost."""

import threading

import pytest
import torch
from torch import nn

from mmlm.checkpoints import writer as checkpoint_writer
from mmlm.checkpoints.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from mmlm.checkpoints.writer import CheckpointWriter
from mmlm.core.errors import UserError

LONG = 60
"""Seconds that no test comes near unless it hangs."""


class Disk:
    """``save_checkpoint`` behind a gate."""

    def __init__(self, monkeypatch):
        self.events, self.gate, self.begun, self.error = [], threading.Event(), threading.Event(), None
        monkeypatch.setattr(checkpoint_writer, "save_checkpoint", self.save)

    def save(self, root, step, *parts):
        self.events.append(f"begin {step}")
        self.begun.set()
        assert self.gate.wait(LONG)
        if self.error is not None:
            raise self.error
        folder = save_checkpoint(root, step, *parts)
        self.events.append(f"end {step}")
        return folder


@pytest.fixture
def disk(monkeypatch):
    """Writing does not end before ``disk.gate.set()``."""
    return Disk(monkeypatch)


def test_save_returns_before_anything_is_written_and_what_training_changes_then_is_not_saved(tmp_path, disk):
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    optimizer = torch.optim.AdamW(model.parameters())

    def train():
        model["head"](model["embedding"](torch.tensor([1, 2]))).square().sum().backward()
        optimizer.step()

    train()
    copy = {
        "weight": model["head"].weight.detach().clone(),
        "mean": optimizer.state_dict()["state"][0]["exp_avg"].clone(),
    }
    state = {"optimizer": optimizer.state_dict(), "numbers": [1, (2.0, None)], "position": 7}
    with CheckpointWriter(tmp_path, keep_last=1) as writer:
        writer.save(1, {"model": model.state_dict()}, state)
        assert disk.begun.wait(LONG)
        assert not list(tmp_path.iterdir())
        train()
        state["numbers"].append(3)
        assert not torch.equal(model["head"].weight, copy["weight"])
        disk.gate.set()
    loaded = load_checkpoint(tmp_path / "step=000001")
    assert torch.equal(loaded.weights["model"]["head.weight"], copy["weight"])
    assert loaded.weights["model"]["head.weight"] is loaded.weights["model"]["embedding.weight"]
    assert torch.equal(loaded.state["optimizer"]["state"][0]["exp_avg"], copy["mean"])
    assert loaded.state["optimizer"]["state"][0]["step"] == 1
    assert (loaded.state["numbers"], loaded.state["position"]) == ([1, (2.0, None)], 7)


def test_views_and_empty_tensors_are_copied_as_what_they_are(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.T, "empty": torch.empty(0), "none": torch.empty(0, 2)}
    with CheckpointWriter(tmp_path, keep_last=1) as writer:
        writer.save(1, {"model": tensors}, {})
    loaded = load_weights(tmp_path / "step=000001")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_save_waits_for_the_one_before(tmp_path, disk):
    with CheckpointWriter(tmp_path, keep_last=2) as writer:
        writer.save(1, {}, {})
        second = threading.Thread(target=writer.save, args=(2, {}, {}))
        second.start()
        assert disk.begun.wait(LONG)
        disk.events.append("still 1")
        disk.gate.set()
        second.join(LONG)
    assert disk.events == ["begin 1", "still 1", "end 1", "begin 2", "end 2"]


def test_the_best_is_marked_and_old_ones_are_deleted(tmp_path):
    with CheckpointWriter(tmp_path, keep_last=1) as writer:
        for step, best in ((1, ("val/R@1", 0.5)), (2, None), (3, None)):
            writer.save(step, {}, {}, best)
            writer.wait()
            writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "step=000001", "step=000003"]
    best = best_checkpoint(tmp_path)
    assert (best.step, best.metric, best.score) == (1, "val/R@1", 0.5)


@pytest.mark.parametrize("then", ["save", "wait", "leave"])
def test_an_error_is_raised_once_at_the_next_occasion(tmp_path, disk, then):
    disk.error = UserError("the disk is full")
    disk.gate.set()
    writer = CheckpointWriter(tmp_path, keep_last=1)
    writer.save(1, {}, {})
    occasions = {
        "save": lambda: writer.save(2, {}, {}),
        "wait": writer.wait,
        "leave": lambda: writer.__exit__(None, None, None),
    }
    with pytest.raises(UserError, match="the disk is full"):
        occasions[then]()
    assert disk.events == ["begin 1"]
    if then != "leave":
        disk.error = None
        writer.wait()
        writer.save(3, {}, {})
        writer.wait()
        assert latest_checkpoint(tmp_path)[0].name == "step=000003"


def test_an_exception_in_training_waits_for_the_disk_and_is_the_one_raised(tmp_path, disk):
    def train(step):
        with CheckpointWriter(tmp_path, keep_last=1) as writer:
            writer.save(step, {}, {})
            threading.Timer(0.01, disk.gate.set).start()
            raise KeyError("training")

    with pytest.raises(KeyError, match="training") as raised:
        train(1)
    assert disk.events == ["begin 1", "end 1"]
    assert not hasattr(raised.value, "__notes__")
    disk.error = OSError("broken")
    with pytest.raises(KeyError, match="training") as raised:
        train(2)
    assert raised.value.__notes__ == ["besides, the last checkpoint was not saved: broken"]


def test_what_cannot_be_stored_is_refused_at_once(tmp_path, disk):
    with CheckpointWriter(tmp_path, keep_last=1) as writer, pytest.raises(TypeError, match=r"state\.names is a set"):
        writer.save(1, {}, {"names": {1}})
    assert disk.events == []


def test_a_best_that_cannot_be_marked_is_a_user_error(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "mark_best", full)
    writer = CheckpointWriter(tmp_path, keep_last=1)
    writer.save(1, {}, {}, ("val/R@1", 0.5))
    with pytest.raises(UserError, match=r"\(No space left on device\); step=000001 is intact"):
        writer.wait()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_gpu_are_copied_before_they_change(tmp_path, disk):
    weight = torch.ones(1000, 1000, device="cuda")
    with CheckpointWriter(tmp_path, keep_last=1) as writer:
        writer.save(1, {"model": {"weight": weight, "tied": weight}}, {"moment": weight})
        weight.zero_()
        disk.gate.set()
    loaded = load_checkpoint(tmp_path / "step=000001")
    assert loaded.weights["model"]["tied"] is loaded.weights["model"]["weight"]
    assert loaded.weights["model"]["weight"].min() == loaded.state["moment"].min() == 1
