"""What is refused in a config."""

import re

import pytest

from mmlm.core.errors import ArgumentError, UserError
from mmlm.experiment.config import DataSettings, InitSettings, ModelSettings, TeacherSettings
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_file import config_text, parse_config
from mmlm.launch.rank_info import RankSettings
from mmlm.training.settings import FitSettings
from mmlm.training.spikes import SpikeSettings


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


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (FitSettings, {"steps": 0}, "steps: 0 must be above 0"),
        (FitSettings, {"micro_batch_size": -2}, "micro_batch_size: -2 must be above 0"),
        (FitSettings, {"max_skipped_steps": -1}, "max_skipped_steps: -1 must be at least 0"),
        (SpikeSettings, {"window": 1}, "window: 1 must be at least 2"),
        (RankSettings, {"timeout_seconds": 0.0}, "timeout_seconds: 0.0 must be above 0"),
        (DataSettings, {"image_size": 0}, "image_size: 0 must be above 0"),
        (DataSettings, {"validation": {"a": 1}, "test": {"a": 1}}, "test.a: a validation split has this name too"),
        (DataSettings, {"train": {"folder": "/a"}, "path": "/b"}, "path: no split of this data reads '/b'"),
        (ModelSettings, {"width": 0}, "width: 0 must be above 0"),
        (InitSettings, {"parts": ["encoder"]}, "parts: has no effect without init_from.run"),
        (TeacherSettings, {"run": "a", "ema": True}, "ema: teacher.run is set too; give one of them"),
    ],
)
def test_settings_check_themselves(settings, values, message):
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        settings(**values)
    settings()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ranks.watchdog_seconds=0", "ranks.watchdog_seconds: 0.0 must be above 0"),
        (
            "ranks.watchdog_seconds=900",
            "ranks.watchdog_seconds: 900 must be below ranks.timeout_seconds, 600, or the ranks give up before it "
            "reports",
        ),
        ("model.width=0", "model.width: 0 must be above 0"),
        ("train.spike.max_rewinds=-1", "train.spike.max_rewinds: -1 must be at least 0"),
    ],
)
def test_what_settings_say_of_themselves_gets_their_key(tiny_config, override, message):
    with pytest.raises(UserError) as refused:
        tiny_config(override)
    assert str(refused.value) == message


def test_the_config_of_a_run_is_checked_when_it_is_read_again(tiny_config):
    text = config_text(tiny_config()).replace("\n  steps: 3\n", "\n  steps: 0\n")
    with pytest.raises(UserError, match=r"^train\.steps: 0 must be above 0$"):
        parse_config(text, "runs/a/config.yaml")


def test_two_places_to_start_from_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"init_from\.weights: init_from\.run is set too; give one of them"):
        tiny_config("init_from.run=x", "init_from.weights=y.safetensors")


def test_no_part_to_take_over_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"init_from\.parts: names no part"):
        tiny_config("init_from.run=x", "init_from.parts=[]")


def test_a_split_of_both_groups_is_refused(tiny_config, shapes):
    source = f"{{_target_: mmlm.data.image_folder.ImageFolder, folder: {shapes}}}"
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
        ("data.max_bad_share=1.5", "data.max_bad_share: 1.5 must lie in [0, 1]; null bears with any share"),
        ("data.overlap_images=0", "data.overlap_images=0 must be at least 1; null compares nothing"),
        ("data.max_bad_in_a_row=0", "data.max_bad_in_a_row=0 must be at least 1; null bears with any number"),
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
