"""Checkpoints: what is saved comes back, damage is found, and no crash loses the one before."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmlm.checkpoints import checkpoint
from mmlm.checkpoints import files as checkpoint_files
from mmlm.checkpoints.checkpoint import (
    CorruptCheckpointError,
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    mark_best,
    prune,
    remove_after,
    save_checkpoint,
)
from mmlm.checkpoints.files import read_manifest
from mmlm.core.errors import UserError


def save(root, step, value=1.0):
    return save_checkpoint(root, step, {"model": {"weight": torch.full((3, 4), value)}}, {"position": step})


def flip_one_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_a_model_and_its_optimizer_come_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    random = torch.get_rng_state()
    state = {"optimizer": optimizer.state_dict(), "random": random, "position": 7, "best": None, "names": ["a", ("b",)]}
    ema = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    folder = save_checkpoint(tmp_path / "checkpoints", 500, {"model": model.state_dict(), "ema": ema}, state)

    assert folder == tmp_path / "checkpoints" / "step=000500"
    assert names(folder) == ["ema.safetensors", "manifest.json", "model.safetensors", "state.pt"]
    loaded = load_checkpoint(folder)
    assert loaded.step == 500
    for group, tensors in (("model", model.state_dict()), ("ema", ema)):
        assert loaded.weights[group].keys() == tensors.keys()
        assert all(torch.equal(loaded.weights[group][name], tensors[name]) for name in tensors)
        assert all(loaded.weights[group][name].dtype == tensors[name].dtype for name in tensors)
    assert torch.equal(loaded.state["random"], random)
    assert {name: loaded.state[name] for name in ("position", "best", "names")} == {
        "position": 7,
        "best": None,
        "names": ["a", ("b",)],
    }
    again = nn.Linear(3, 4)
    resumed = torch.optim.AdamW(again.parameters())
    again.load_state_dict(loaded.weights["model"])
    resumed.load_state_dict(loaded.state["optimizer"])
    for one, its_optimizer in ((model, optimizer), (again, resumed)):
        its_optimizer.zero_grad()
        one(torch.ones(2, 3)).square().sum().backward()
        its_optimizer.step()
    assert torch.equal(model.weight, again.weight)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    model = nn.ModuleDict({"embedding": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
    model["head"].weight = model["embedding"].weight
    folder = save_checkpoint(tmp_path, 1, {"model": model.state_dict()}, {})
    assert (folder / "model.safetensors").stat().st_size < 2 * 50 * 8 * 4
    loaded = load_weights(folder)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    assert torch.equal(loaded["head.weight"], model["head"].weight)
    model.load_state_dict(loaded)


def test_views_of_shared_memory_are_stored_as_they_are(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.T, "empty": torch.empty(0), "none": torch.empty(0, 2)}
    loaded = load_weights(save_checkpoint(tmp_path, 1, {"model": tensors}, {}))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "value", [np.float64(1.0), {1, 2}, Path("x"), lambda: 0], ids=["numpy", "set", "path", "function"]
)
def test_refuses_a_state_that_could_not_be_loaded(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\.optimizer\.0 is a "):
        save_checkpoint(tmp_path, 1, {}, {"optimizer": [value]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize(
    ("damage", "said"), [(flip_one_bit, "checksum"), (truncate, "bytes instead of"), (Path.unlink, "is missing")]
)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, file, damage, said):
    before, newest = save(tmp_path, 10), save(tmp_path, 20)
    assert latest_checkpoint(tmp_path) == (newest, [])
    damage(newest / file)
    with pytest.raises(CorruptCheckpointError, match=said):
        load_checkpoint(newest)
    folder, messages = latest_checkpoint(tmp_path)
    assert folder == before
    assert len(messages) == 1
    assert "step=000020 is damaged" in messages[0]
    assert file in messages[0]
    assert "falling back" in messages[0]


def rewrite(**changes):
    def damage(manifest):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    "damage",
    [truncate, Path.unlink, rewrite(step=30), rewrite(files={}), rewrite(files={"state.pt": {}}), rewrite(saved=None)],
)
def test_a_damaged_manifest_is_a_damaged_checkpoint(tmp_path, damage):
    before, newest = save(tmp_path, 10), save(tmp_path, 20)
    if damage is truncate:
        (newest / "manifest.json").write_text('{"step": 20')
    else:
        damage(newest / "manifest.json")
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json"):
        load_checkpoint(newest)
    folder, messages = latest_checkpoint(tmp_path)
    assert (folder, len(messages)) == (before, 1)


def test_no_flipped_bit_of_a_manifest_changes_what_it_says(tmp_path):
    folder = save(tmp_path, 10)
    file = folder / "manifest.json"
    content, manifest = file.read_bytes(), read_manifest(folder)
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert read_manifest(folder) == manifest
        except CorruptCheckpointError:
            continue


def test_weights_are_verified_even_when_only_they_are_read(tmp_path):
    folder = save(tmp_path, 10)
    flip_one_bit(folder / "state.pt")
    assert load_weights(folder)["weight"].shape == (3, 4)
    flip_one_bit(folder / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors does not have the checksum"):
        load_weights(folder)


def test_errors_are_user_errors_in_one_line_and_travel_between_processes(tmp_path):
    with pytest.raises(UserError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no 'ema' weights; there are: model"):
        load_weights(save(tmp_path, 1), "ema")
    error = CorruptCheckpointError(tmp_path, "x is missing")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.folder, copy.reason) == (str(error), tmp_path, "x is missing")


def test_no_checkpoint_is_none_but_only_damaged_ones_are_an_error(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") == (None, [])
    assert latest_checkpoint(tmp_path) == (None, [])
    for step in (10, 20):
        flip_one_bit(save(tmp_path, step) / "state.pt")
    with pytest.raises(UserError, match=r"all 2 checkpoints in .* are damaged"):
        latest_checkpoint(tmp_path)


class CrashError(Exception):
    """Stands for the power going off."""


@pytest.mark.parametrize("step", [20, 10], ids=["new", "same step"])
@pytest.mark.parametrize("call", ["save_weights", "write_json", "flush", "rename"])
def test_a_crash_at_any_point_leaves_an_intact_checkpoint(tmp_path, monkeypatch, call, step):
    save(tmp_path, 10, value=1.0)

    def crash(*arguments, **named):
        raise CrashError

    with monkeypatch.context() as patch:
        if call == "rename":
            # The last rename: everything is written, and an old folder of the same step is already out of the way.
            rename = Path.rename
            patch.setattr(Path, "rename", lambda a, b: crash() if a.name.startswith(".saving") else rename(a, b))
        else:
            patch.setattr(checkpoint if call == "save_weights" else checkpoint_files, call, crash)
        with pytest.raises(CrashError):
            save(tmp_path, step, value=2.0)
    folder, messages = latest_checkpoint(tmp_path)
    assert messages == []
    assert load_weights(folder)["weight"].unique().item() == 1.0
    assert load_checkpoint(folder).step == 10

    again = save(tmp_path, step, value=3.0)
    assert latest_checkpoint(tmp_path) == (again, [])
    assert load_weights(again)["weight"].unique().item() == 3.0
    assert not [name for name in names(tmp_path) if name.startswith(".") or name.endswith(".replaced")]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10, value=1.0)
    folder = save(tmp_path, 10, value=2.0)
    assert names(tmp_path) == ["step=000010"]
    assert load_weights(folder)["weight"].unique().item() == 2.0


def test_the_best_is_remembered(tmp_path):
    assert best_checkpoint(tmp_path) is None
    folder = save(tmp_path, 10)
    mark_best(tmp_path, save(tmp_path, 5), "val/R@1", 0.1)
    mark_best(tmp_path, folder, "val/R@1", 0.5)
    best = best_checkpoint(tmp_path)
    assert (best.folder, best.step, best.metric, best.score) == (folder, 10, "val/R@1", 0.5)
    assert load_checkpoint(best.folder).step == 10
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(UserError, match=r"best\.json cannot be read"):
        best_checkpoint(tmp_path)
    mark_best(tmp_path, tmp_path / "step=000099", "val/R@1", 0.6)
    with pytest.raises(UserError, match="which is not there"):
        best_checkpoint(tmp_path)


def test_prune_keeps_the_last_the_best_and_the_named(tmp_path):
    folders = [save(tmp_path, step) for step in (10, 20, 30, 40, 50)]
    mark_best(tmp_path, folders[1], "loss", 1.0)
    assert prune(tmp_path, 2, keep=[folders[0]]) == [folders[2]]
    assert names(tmp_path) == ["best.json", "step=000010", "step=000020", "step=000040", "step=000050"]
    with pytest.raises(UserError, match="keep_last: 0 keeps no checkpoint"):
        prune(tmp_path, 0)


def test_prune_keeps_what_was_saved_after_falling_back(tmp_path):
    save(tmp_path, 10)
    flip_one_bit(save(tmp_path, 100) / "model.safetensors")
    folder, _ = latest_checkpoint(tmp_path)
    assert folder.name == "step=000010"
    resumed = save(tmp_path, 20)
    prune(tmp_path, 1)
    assert names(tmp_path) == ["step=000020"]
    assert latest_checkpoint(tmp_path) == (resumed, [])


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "step=notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, 10)
    save(tmp_path, 20)
    prune(tmp_path, 1)
    assert names(tmp_path) == ["notes.txt", "step=000020", "step=notes"]


def test_of_a_run_that_goes_back_later_checkpoints_are_neither_taken_nor_kept_but_for_the_best(tmp_path):
    folders = {step: save(tmp_path, step) for step in (2, 4, 5, 6, 8)}
    mark_best(tmp_path, folders[6], "score", 1.0)
    assert latest_checkpoint(tmp_path, at_most=5) == (folders[5], [])
    assert latest_checkpoint(tmp_path, at_most=3) == (folders[2], [])
    assert latest_checkpoint(tmp_path, at_most=1) == (None, [])
    assert set(remove_after(tmp_path, 4)) == {folders[5], folders[8]}
    assert names(tmp_path) == ["best.json", "step=000002", "step=000004", "step=000006"]
    assert best_checkpoint(tmp_path).folder == folders[6]
