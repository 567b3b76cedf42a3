"""``init_from.run=RUN data=PATH``: a run brings its parts, sizes, tokenizer and recipe, and the command resumes."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from mmlm import train
from mmlm.cli.own_data import quoted
from mmlm.experiment.config_file import load_config
from mmlm.experiment.experiment import build_experiment
from mmlm.experiment.saved_run import load_run, trained_weights
from mmlm.record.folder import CONFIG, TOKENIZER
from tests.equality import same, weights_of

SCALE = "objective.objectives.contrastive.logit_scale"


def runs_in(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"**/seed=*/{CONFIG}"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where the first test leaves the run that all tests start from."""
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def source(request, kept, tmp_path) -> Path:
    """A run whose temperature is no longer the one that it began with."""
    if not kept.exists():
        request.getfixturevalue("trained")("optim.lr=0.05", "data.captions_per_image=null", "evaluators=retrieval")
        shutil.copytree(tmp_path / "runs", kept)
    elif not (tmp_path / "runs").exists():
        shutil.copytree(kept, tmp_path / "runs")
    return runs_in(tmp_path / "runs")[0]


@pytest.fixture
def fine_tune(command, source, shapes, tmp_path):
    """``fine_tune(*overrides)``: the obvious command, with the newest run and a folder of images."""
    runs = tmp_path / "runs"
    return lambda *more: command(train, f"init_from.run={runs}", f"data={shapes}", f"runs={runs}", "device=cpu", *more)


def test_one_command_trains_on_from_a_run_on_ones_own_images(fine_tune, source, shapes, tmp_path):
    outcome = fine_tune("train.steps=2")
    assert outcome.status == 0, outcome
    assert outcome.err.splitlines() == [
        f"mmlm: data: {shapes} has no validation split; a tenth of its images validates, by a hash of their ids "
        "(data.train.held_out=0.1)",
        f"mmlm: init_from.run: {source} brings its parts, sizes and tokenizer, and how it was trained; learning rate "
        "0.005, a tenth of its own (optim.lr=)",
    ]
    folder = next(run for run in runs_in(tmp_path / "runs" / "finetune"))
    old, new = (load_config(run / CONFIG) for run in (source, folder))
    for slot in ("encoder", "bridge", "text_encoder", "decoder", "tokenizer", "model", "transform", "objective"):
        assert getattr(new, slot) == getattr(old, slot), slot
    assert (new.data.image_size, new.data.max_tokens) == (old.data.image_size, old.data.max_tokens)
    assert new.init_from.run == str(source)
    assert new.optim["lr"] == pytest.approx(0.005)
    assert (new.experiment, new.train.steps, new.train.batch_size) == ("finetune", 2, old.train.batch_size)
    assert (folder / TOKENIZER / "byte_pair.json").read_bytes() == (source / TOKENIZER / "byte_pair.json").read_bytes()
    # The config says everything itself: a worker that is started with it alone builds the same run.
    experiment = build_experiment(new, tmp_path / "elsewhere", torch.device("cpu"))
    assert same(weights_of(experiment), load_run(str(source), torch.device("cpu")).model.state_dict())
    # A second time, with two runs there: the same start, and so the same run, which is finished.
    again = fine_tune("train.steps=2")
    assert again.status == 0
    assert "finished already at step 2" in again.out
    assert f"holds 2 runs; taking the one that was trained last, {source}" in again.err
    assert len(runs_in(tmp_path / "runs" / "finetune")) == 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = next(value for row in rows for key, value in row.items() if key.endswith("contrastive/temperature"))
    learned = math.exp(-float(trained_weights(source, old)[1][SCALE]))
    assert shown == pytest.approx(learned, rel=1e-4)
    assert learned != pytest.approx(0.07, rel=1e-3)


def test_options_and_settings_still_count(fine_tune, tmp_path):
    more = (
        "optim=muon",
        "schedule=constant",
        "train.steps=1",
        "freeze=lit",
        "optim.lr=0.001",
        "data.train.held_out=0.5",
    )
    outcome = fine_tune(*more, "launcher=none")
    assert outcome.status == 0, outcome
    assert "of its own (optim.lr=)" not in outcome.err
    config = load_config(runs_in(tmp_path / "runs" / "finetune")[0] / CONFIG)
    assert config.optim["_target_"].endswith("Muon")
    assert config.schedule["_target_"].endswith("Constant")
    assert (config.optim["lr"], config.data.train["held_out"], config.freeze["frozen"]) == (0.001, 0.5, ["encoder"])
    assert config.data.validation["validation"]["held_out"] == 0.5


def test_another_loss_starts_from_its_settings_and_says_so(fine_tune, source):
    told = " ".join(fine_tune("objective=coca_sigmoid", "preflight=true", "train.steps=1").out.split())
    assert "objective.objectives.sigmoid: starts from its settings (temperature=0.1, bias=-10.0)" in told
    assert f"{source} has none of it" in told


def test_a_changed_temperature_counts_and_is_told(fine_tune, source):
    outcome = fine_tune("preflight=true", "objective.objectives.contrastive.temperature=0.2")
    told = " ".join(outcome.out.split())
    assert "objective.objectives.contrastive: starts from its settings (temperature=0.2)" in told
    assert f"{source} has learned it with other settings" in told


MISFITS = {
    ("decoder=lstm",): "decoder: lstm does not fit the weights of {run}, whose decoder is TransformerDecoder; leave it "
    "out, or say which parts to take: init_from.parts=[encoder,bridge]",
    ("model.width=64",): "model.width: 64 does not fit the weights of {run}, whose model.width is 32; leave it out",
    ("encoder.depth=3",): "encoder.depth: 3 does not fit the weights of {run}, whose encoder.depth is 1",
    ("tokenizer=open_clip",): "tokenizer: open_clip does not fit the weights of {run}, whose tokenizer is BytePair",
    ("train.stpes=3",): "train.stpes: no such setting; did you mean train.steps?",
}


@pytest.mark.parametrize("overrides", MISFITS)
def test_what_the_weights_do_not_fit_is_refused_in_one_line(fine_tune, source, tmp_path, overrides):
    assert fine_tune(*overrides).mistake.startswith(MISFITS[overrides].format(run=source))
    assert not (tmp_path / "runs" / "finetune").exists()


@pytest.mark.parametrize("path", ["a/b", "a [b], c", 'say "a"', "back\\", 'x\\"y', "日本", "it's = {b}"])
def test_a_path_is_a_value_whatever_its_name(path):
    parsed = OverridesParser.create().parse_override(f"data.path={quoted(path)}")
    assert parsed.value() == path


def test_parts_that_are_named_leave_the_others_free(fine_tune, source, tmp_path):
    parts = "init_from.parts=[encoder,bridge,image_projection]"
    assert fine_tune(parts, "decoder=lstm", "train.steps=1").status == 0
    config = load_config(runs_in(tmp_path / "runs" / "finetune")[0] / CONFIG)
    assert config.decoder["_target_"].endswith("RecurrentDecoder")
    assert "encoder.depth: 3" in fine_tune(parts, "encoder.depth=3").mistake


def test_mistakes_around_a_run_and_a_path(command, source, shapes, tmp_path, monkeypatch):
    runs = f"init_from.run={tmp_path / 'runs'}"
    assert "brings a model and no images; give data=PATH" in command(train, runs).mistake
    assert "nowhere is no run folder" in command(train, "init_from.run=nowhere", f"data={shapes}").mistake
    assert "there is no file or folder ./photoz; give the path" in command(train, runs, "data=./photoz").mistake
    assert command(train, runs, "data=photoz").mistake.startswith("unknown data 'photoz'")
    (tmp_path / "empty").mkdir()
    assert "nothing in it is recognised" in command(train, runs, f"data={tmp_path / 'empty'}", "device=cpu").err


def test_a_run_is_no_option_of_later_commands(fine_tune, command):
    mistake = fine_tune("optim=adamm").mistake
    assert mistake == command(train, "optim=adamm").mistake
    assert mistake.startswith("unknown optim 'adamm'; there are:")
    assert "run_" not in mistake
    assert ConfigStore.instance().list("optim") == []


def test_a_folder_of_somebody_else_is_data_here_too(fine_tune, source):
    text = (source / CONFIG).read_text()
    (source / "manifest.jsonl").unlink()
    (source / CONFIG).write_text(text.replace("name: null", "name: ${oc.env:HOME}", 1))
    assert "asks for something outside of the config" in fine_tune().mistake
    changed = text.replace("mmlm.model.bridges.attentional_pooler.AttentionalPooler", "os.system")
    (source / CONFIG).write_text(changed)
    assert "bridge asks for the plug-in 'os'" in fine_tune().mistake


def test_with_an_experiment_the_sizes_to_give_are_said(command, tiny, source, tmp_path):
    mistake = command(train, *tiny, f"init_from.run={source}", "encoder.width=48", "encoder.num_heads=2").mistake
    assert "; the run has encoder.width=32: give these, or leave out experiment=, and the run brings them" in mistake


def test_a_path_with_splits_trains_on_one_and_validates_on_the_other(command, tiny, shapes, tmp_path):
    both = tmp_path / "both [of], them"
    for name in ("train", "val"):
        (both / name).parent.mkdir(exist_ok=True)
        (both / name).symlink_to(shapes)
    arguments = [token for token in tiny if not token.startswith("data")]
    sizes = ("data.image_size=16", "data.max_tokens=24", "tokenizer.languages=[]")
    outcome = command(train, *arguments, f"data={both}", *sizes, "preflight=true")
    assert outcome.status == 0, outcome
    assert f"data: {both / 'train'} is trained on, and {both / 'val'} validates" in outcome.err
