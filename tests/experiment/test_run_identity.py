"""What names a run, and how two configs differ."""

from pathlib import Path

import pytest

from mmlm.core.errors import UserError
from mmlm.experiment.config_file import config_values
from mmlm.experiment.run_identity import OUTSIDE_IDENTITY, differences, identity, run_folder

OUTSIDE = {
    "name": "other",
    "seed": "7",
    "runs": "elsewhere",
    "device": "cuda",
    "logger": "[wandb,tensorboard]",
    "data.workers": "2",
    "data.overlap_images": "9",
    "data.max_bad_share": "0.5",
    "data.max_bad_in_a_row": "9",
    "train.log_every": "5",
    "train.diagnose_every": "null",
    "train.max_skipped_steps": "9",
    "train.spike.max_rewinds": "9",
    "train.activation_checkpointing": "true",
    "train.compile": "true",
    "parallel": "fsdp",
    "preflight": "true",
    "launcher": "local",
    "ranks.timeout_seconds": "900",
    "resume": "never",
    "train.keep_last": "9",
}
"""Settings that do not decide what is computed, with values that are not the tiny run's."""
INSIDE = {
    "optim.lr": "0.5",
    "train.steps": "4",
    "train.precision": "bf16",
    "train.eval_every": "2",
    "train.ema_decay": "0.9",
    "encoder.depth": "2",
    "objective.weights.captioning": "2.0",
    "transform": "plain",
    "bridge": "mlp",
    "schedule": "constant",
    "data.captions_per_image": "null",
    "+data.captions.kinds": "{en: 0.5}",
    "data.captions.negatives": "[en]",
    "evaluators.image_use_gap.seed": "1",
    "samples.examples": "2",
}


def test_the_outside_of_identity_is_listed_here_in_full():
    nodes = ("launcher", "ranks")
    named = {key.split(".")[0] if key.startswith(nodes) else key for key in OUTSIDE}
    assert named | {"processes"} == set(OUTSIDE_IDENTITY)  # which needs a launcher beside it: tested below


def test_the_number_of_processes_is_outside_and_needs_a_launcher(tiny_config):
    assert identity(tiny_config("launcher=local", "processes=2")) == identity(tiny_config())
    with pytest.raises(UserError, match="processes: 2 has no effect without a launcher; add launcher=local"):
        tiny_config("processes=2")


@pytest.mark.parametrize("key", OUTSIDE)
def test_identity_ignores_what_computes_the_same(tiny_config, key):
    changed = tiny_config(f"{key}={OUTSIDE[key]}")
    assert config_values(changed) != config_values(tiny_config())
    assert identity(changed) == identity(tiny_config())
    assert differences(tiny_config(), changed) == []


@pytest.mark.parametrize("key", INSIDE)
def test_identity_knows_what_computes_otherwise(tiny_config, key):
    changed = tiny_config(f"{key}={INSIDE[key]}")
    assert identity(changed) != identity(tiny_config())
    assert differences(tiny_config(), changed)


def test_identities_differ_from_each_other(tiny_config):
    names = [identity(tiny_config(f"{key}={value}")) for key, value in INSIDE.items()]
    assert len(set(names)) == len(INSIDE)
    assert all(len(name) == 8 and set(name) <= set("0123456789abcdef") for name in names)


def test_identity_does_not_depend_on_the_module_that_a_class_lives_in(tiny_config):
    config, moved = tiny_config(), tiny_config()
    moved.bridge["_target_"] = "mmlm.elsewhere.deeper.AttentionalPooler"
    moved.objective["objectives"]["contrastive"]["_target_"] = "mmlm.losses.InfoNCE"
    assert identity(moved) == identity(config)
    for other in ("mmlm.model.bridges.attentional_pooler.Other", "plugin.attentional_pooler.AttentionalPooler"):
        moved.bridge["_target_"] = other
        assert identity(moved) != identity(config)


def test_the_run_folder(tiny_config, tmp_path):
    config = tiny_config()
    assert run_folder(config) == tmp_path / "runs" / "caption_base" / identity(config) / "seed=0"
    named = tiny_config("name=second", "seed=3", "runs=here")
    assert run_folder(named) == Path("here/caption_base/second/seed=3")


def test_differences_name_key_and_both_values(tiny_config):
    changed = tiny_config("optim.lr=0.5", "train.clip_norm=null", "bridge=mlp", "seed=4")
    assert differences(tiny_config(), changed) == [
        "bridge._target_: mmlm.model.bridges.attentional_pooler.AttentionalPooler -> "
        "mmlm.model.bridges.projection.MlpProjection",
        "bridge.contrastive: shared -> None",
        "bridge.feed_forward: False -> None",
        "bridge.mlp_ratio: None -> 2.0",
        "bridge.num_heads: 4 -> None",
        "bridge.pixel_shuffle: None -> 1",
        "optim.lr: 0.002 -> 0.5",
        "train.clip_norm: 1.0 -> None",
    ]
