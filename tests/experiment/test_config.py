"""The schema: what names a run, what is refused, and what a run's own file gives back."""

import re
from pathlib import Path

import pytest

from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.experiment.config import (
    OUTSIDE_IDENTITY,
    check_config,
    config_values,
    differences,
    identity,
    load_config,
    run_folder,
    save_config,
)

OUTSIDE = {
    "name": "other",
    "seed": "7",
    "runs": "elsewhere",
    "device": "cuda",
    "metrics.wandb": "offline",
    "metrics.tags": "[a]",
    "data.workers": "2",
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
    "evaluators.image_use_gap.seed": "1",
    "samples.examples": "2",
}


def test_the_outside_of_identity_is_listed_here_in_full():
    nodes = ("metrics", "launcher", "ranks")
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


def test_a_saved_config_comes_back(tiny_config, tmp_path):
    config = tiny_config("name=a", "train.ema_decay=0.9", "metrics.tags=[x,y]", "init_from.run=some/run")
    save_config(config, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert config_values(loaded) == config_values(config)
    assert (identity(loaded), differences(loaded, config)) == (identity(config), [])
    assert loaded.train.precision is Precision.fp32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps: 3", "stepz: 3"), "train.stepz: no such setting; did you mean train.steps?"),
        (("steps: 3", "steps: many"), "train.steps: 'many' is not an int"),
        (("steps: 3", "steps: [3"), "line "),
        (("patch_size", "patch_sice"), "encoder.patch_sice: TimmVit takes no 'patch_sice'; did you mean 'patch_size'?"),
    ],
)
def test_a_damaged_file_of_a_run_is_told_in_one_line(tiny_config, tmp_path, change, message):
    file = tmp_path / "config.yaml"
    save_config(tiny_config(), file)
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    with pytest.raises(UserError) as refused:
        load_config(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_of_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: there is no such file; give a run's folder"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "train.steps: 0 must be above 0"),
        ("train.batch_size=-1", "train.batch_size: -1 must be above 0"),
        ("train.eval_every=0", "train.eval_every: 0 must be above 0"),
        ("train.clip_norm=nan", "train.clip_norm: nan must be above 0"),
        ("train.keep_last=0", "train.keep_last: 0 must be above 0"),
        ("data.evaluation_batch_size=0", "data.evaluation_batch_size: 0 must be above 0"),
        ("init_from.parts=[encoder]", "init_from.parts: has no effect without init_from.run"),
        ("init_from.missing=[a.*]", "init_from.missing: has no effect without init_from.run or weights"),
        ("init_from.unexpected=[a.*]", "init_from.unexpected: has no effect without init_from.run or weights"),
    ],
)
def test_numbers_and_settings_without_effect_are_refused(tiny_config, override, message):
    with pytest.raises(UserError, match=message):
        tiny_config(override)


def test_two_places_to_start_from_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"init_from\.weights: init_from\.run is set too; give one of them"):
        tiny_config("init_from.run=x", "init_from.weights=y.safetensors")


def test_no_part_to_take_over_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"init_from\.parts: names no part"):
        tiny_config("init_from.run=x", "init_from.parts=[]")


def test_a_split_of_both_groups_is_refused(tiny_config, shapes):
    source = f"{{_target_: mmlm.data.sources.ImageFolder, folder: {shapes}}}"
    with pytest.raises(UserError, match=r"data\.test\.validation: a validation split has this name too"):
        tiny_config(f"+data.test.validation={source}")


@pytest.mark.parametrize(
    ("override", "slot"),
    [
        ("+encoder.dept=3", "encoder.dept"),
        ("+bridge.patch_width=3", "bridge.patch_width"),
        ("+data.train.folders=x", "data.train.folders"),
        ("+data.validation.validation.folders=x", "data.validation.validation.folders"),
        ("+evaluators.loss.sed=1", "evaluators.loss.sed"),
        ("evaluators.loss._target_=os.system", "evaluators.loss"),
        ("tokenizer._target_=mmlm.data.tokenizer.Nothing", "tokenizer"),
    ],
)
def test_every_part_is_bound_to_its_signature(tiny_config, override, slot):
    with pytest.raises(UserError, match=rf"^{slot}\b"):
        tiny_config(override)


def test_checking_builds_nothing(compose, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("something was built")

    monkeypatch.setattr("mmlm.model.encoders.timm_vit.TimmVit.__init__", refuse.__get__(object()))
    monkeypatch.setattr("mmlm.data.emoji._read_table", refuse)
    assert check_config(compose("experiment=caption_base")).data.train["split"] == "train"


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("train.max_skipped_steps=-1", "train.max_skipped_steps: -1 must be at least 0"),
        ("train.spike.max_rewinds=-1", "train.spike.max_rewinds: -1 must be at least 0"),
        ("train.spike.window=1", "train.spike.window: 1 must be at least 2"),
        ("train.spike.threshold=0", "train.spike.threshold: 0.0 must be above 0"),
        (
            "train.spike.threshold=6",
            "train.spike.threshold: there is no checkpoint to go back to; set train.save_every",
        ),
    ],
)
def test_settings_of_guards_are_checked(tiny_config, override, mistake):
    with pytest.raises(UserError, match=f"^{re.escape(mistake)}$"):
        tiny_config(override)
