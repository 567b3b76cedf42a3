"""What is refused in a config."""

import re

import pytest

from mmlm.core.errors import UserError
from mmlm.experiment.config_checks import check_config


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
