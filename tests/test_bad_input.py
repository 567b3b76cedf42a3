"""Bad input gets a clear answer: one line with the key or file, the value and the fix; status 2; nothing is started."""

import re
from pathlib import Path

import pytest

from mmlm import evaluate, report, train
from mmlm.cli.hydra_command import hydra_override
from mmlm.experiment.config import CONFIG_DIR
from mmlm.experiment.run_identity import run_folder
from mmlm.record.metrics import read_metrics
from mmlm.run import session as training


def options(group: str) -> str:
    """The options of a group, as a message lists them."""
    return ", ".join(sorted(file.stem for file in (CONFIG_DIR / group).glob("*.yaml")))


REFUSED = [
    # A misspelt key: of the settings, of a part, a whole group, or added by force.
    ("train.stpes=2", "train.stpes: no such setting; did you mean train.steps?"),
    ("optim.lrr=1", "optim.lrr: no such setting; did you mean optim.lr?"),
    ("trian.steps=2", "trian: no such setting; did you mean train?"),
    ("steps=2", "steps: no such setting; did you mean train.steps?"),
    ("train.seed=2", "train.seed: no such setting; did you mean seed"),
    (
        "freeze.unfreeze.encoder=2",
        "freeze.unfreeze.encoder: not in its file yet; add it with +freeze.unfreeze.encoder=",
    ),
    ("freeze.unfreeze={encoder.vit:2}", "yet; add it with '+freeze.unfreeze={encoder.vit: VALUE}'"),
    (
        "+freeze.unfreeze.encoder.vit.blocks.3=2",
        "freeze.unfreeze.encoder.vit.blocks.3: 'encoder.vit.blocks.3' is one name, and its dots are read as levels "
        "here; write '+freeze.unfreeze={encoder.vit.blocks.3: 2}'",
    ),
    ("transform.augment.shaer=2", "transform.augment.shaer: no such setting; did you mean transform.augment.shear?"),
    ("+train.stpes=2", "train.stpes: no such setting; did you mean train.steps?"),
    ("+encoder.dept=2", "encoder.dept: TimmVit takes no 'dept'; did you mean 'depth'?"),
    ("+transform.augment.rotation=2", "transform.augment.rotation: AugmentSettings takes no 'rotation'"),
    ("train.steps", "'train.steps' is not a setting; write key=value"),
    # A wrong type or value.
    ("train.steps=many", "train.steps: 'many' is not an int"),
    ("train.steps=1.5", "train.steps: 1.5 is not an int"),
    ("train.steps=0", "train.steps: 0 must be above 0"),
    ("train.precision=fp8", "train.precision: 'fp8' is not one of"),
    ("optim.lr=fast", "optim.lr: 'fast' is not a float"),
    ("optim.lr=-1", "optim.lr: -1.0 must be above 0"),
    ("optim.weight_decay=-1", "optim.weight_decay: -1.0 must be at least 0"),
    ("schedule.warmup_steps=-1", "schedule.warmup_steps: -1 must be at least 0"),
    ("encoder.depth=two", "encoder.depth: 'two' is not an int or null"),
    ("encoder.depth=[2]", "encoder.depth: [2] is not an int or null"),
    ("decoder.positions=absolute", "decoder.positions: 'absolute' is not one of 'sinusoidal', 'learned', 'rotary'"),
    ("decoder.dropout=2", "decoder.dropout: 2.0 must lie in [0, 1)"),
    ("transform.augment.flip=2", "transform.augment.flip: 2.0 must be between 0 and 1"),
    ("data.workers=-1", "workers=-1 must be at least 0"),
    ("data.max_tokens=2", "max_tokens=2 must be at least 3"),
    ("data.language=xx", "data.language: a caption's language is 'xx', but tokenizer.languages=['en']; add it there"),
    ("logger=wandb logger.wandb.mode=on", "logger.wandb.mode: 'on' is not one of 'offline', 'online'"),
    ("device=gpu", "device: 'gpu' is not one of auto, cpu, cuda"),
    ("name=a/b", "name: 'a/b' must be the name of one folder, without a slash"),
    ("train.best_metric=validation/R", "train.best_metric: 'validation/R' is not evaluated; there are: validation/c"),
    # A part that is none, or that does not fit.
    ("encoder=vitt", f"unknown encoder 'vitt'; there are: {options('encoder')}"),
    ("encoder=null", f"unknown encoder 'null'; there are: {options('encoder')}"),
    (
        "encoder._target_=mmlm.model.encoders.timm_vit.TimmVitt",
        "mmlm.model.encoders.timm_vit has no 'TimmVitt'; did you mean 'TimmVit'?",
    ),
    (
        "encoder._target_=os.system",
        "encoder: _target_ 'os.system' is not allowed; it may only name mmlm.model.encoders.*",
    ),
    ("bridge._target_=mmlm.model.encoders.timm_vit.TimmVit", "is not allowed; it may only name mmlm.model.bridges.*"),
    (
        "bridge._target_=mmlm.model.bridges.perceiver_resampler.PerceiverResampler",
        "bridge.num_queries: PerceiverResampler takes no 'num_queries'",
    ),
    ("encoder.name=resnet18", "encoder.name: "),
    ("encoder.name=vit_nothing", "encoder.name: timm has no model 'vit_nothing'; it has for example vit_"),
    ("encoder.pretrained=true", "encoder.pretrained: pretrained weights fix width, depth, num_heads, stem"),
    ("encoder.num_heads=5", "encoder.name: timm's 'vit_tiny_patch16_224' does not take width=32, depth=1, num_heads=5"),
    ("decoder.num_heads=0", "decoder.num_heads: 0 does not divide the width 32; choose one that does"),
    ("data.image_size=20", "encoder.patch_size: image size 20 is not a multiple of patch size 8"),
    ("objective.weights.captioning=-1", "objective.weights.captioning: -1.0 is no weight; use 0 to leave"),
    ("+objective.weights.matching=1", "objective.weights: matching must be named in both objectives and weights"),
    # A missing file, folder or run; data that is too small.
    ("data.train.folder=nowhere", "nowhere: there is no such folder; give the one that holds captions.jsonl"),
    ("data.train.captions=no.jsonl", "no.jsonl: there is no such file; write one line"),
    ("data.validation.validation.folder=nowhere", "nowhere: there is no such folder"),
    ("init_from.run=nowhere", "run: nowhere is no run folder (it has no config.yaml)"),
    ("runs=/dev/null/runs", "runs: /dev/null/runs/caption_base/"),
    ("train.batch_size=9", "train.batch_size: 9 is larger than the data set, which has 8 examples; use at most 8"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=lambda value: value.split(" ")[0])
def test_a_mistake_is_one_line_before_training_starts(train_tiny, tmp_path, monkeypatch, override, message):
    def fit(*arguments):
        raise AssertionError("training was started")

    if "best_metric" not in override:  # which needs an evaluation to be known
        monkeypatch.setattr(training, "fit", fit)
    outcome = train_tiny(*override.split())
    assert message in outcome.mistake
    assert "step 1/3" not in outcome.out
    assert "best_metric" in override or not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("experiment=caption_bse",), f"unknown experiment 'caption_bse'; there are: {options('experiment')}"),
        (("expriment=caption_base",), "expriment: no such setting; did you mean experiment?"),
        (
            ("experiment=caption_base", "data=no_such_data"),
            f"unknown data 'no_such_data'; there are: {options('data')}",
        ),
        (("experiment=caption_base", "data=folder"), "data.train.folder, data.validation.validation.folder: required"),
        ((), f"experiment: required, and not set; write experiment=VALUE; there are: {options('experiment')}"),
        (
            ("experiment=caption_base", "data.train.split=trian"),
            "data.train.split: 'trian' is no split of the emoji data; choose one of",
        ),
    ],
)
def test_mistakes_about_what_to_train(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in command(train, *arguments).mistake
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "red_square.png", "caption": 3}', "captions.jsonl:1: 'caption' must be a string"),
        ('{"image": "gone.png", "caption": "x"}', "gone.png: there is no such file (1 of 1 images are missing)"),
        ('{"image": "red_square.png"}', "captions.jsonl:1: needs 'image' and either 'captions' or 'caption'"),
        ('{"image": "red_square.png", "caption"', "captions.jsonl:1: is not JSON"),
        ("", "captions.jsonl: has no line"),
        ('{"image": "red_square.png", "caption": "x", "language": "xx"}', "a caption's language is 'xx', but"),
    ],
)
def test_mistakes_in_a_data_folder(train_tiny, shapes, tmp_path, line, message):
    (shapes / "captions.jsonl").write_text(line + "\n")
    assert message in train_tiny("train.batch_size=1").mistake
    assert not (tmp_path / "runs").exists()


def test_every_image_is_corrupt(train_tiny, shapes):
    for image in shapes.glob("*.png"):
        image.write_bytes(b"no image")
    assert re.search(r"all 4 images of a batch are corrupt \(the first is .*png: is not an image", train_tiny().mistake)


def test_losses_that_are_not_finite_stop_with_step_and_ids_after_saving(train_tiny, tiny_config):
    wild = ("optim.lr=1e30", "train.steps=50", "train.clip_norm=null", "train.max_skipped_steps=1")
    outcome = train_tiny(*wild)
    what = (
        r"step (\d+): the loss is not finite \(contrastive \S+, captioning \S+, gradient norm \S+\) on the batch "
        r"(?:\w+\.png(?:, )?){4}; "
    )
    end = (
        r"to be left out, and train\.max_skipped_steps is 1; the state without it is saved; lower optim\.lr or look at "
    )
    found = re.fullmatch(what + "that is update 2 " + end + "these examples", outcome.mistake)
    assert found, outcome.err
    assert len(re.findall(what + "its update is left out", outcome.out)) == 2
    step = int(found.group(1)) + 1
    folder = run_folder(tiny_config(*wild))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step={step:06d}"]
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step + 1))
    assert rows[-1]["train/skipped_steps"] == 2
    again = train_tiny(*wild)
    assert f"resumed at step {step}" in again.out
    assert again.mistake.startswith(f"step {step}: the loss is not finite"), "the next batch"
    assert "that is update 3 to be left out" in again.mistake


@pytest.mark.parametrize("name", ["图片", "café", "фото", "😀", "a & b; c!", "it#1"])
def test_names_in_any_alphabet_are_values(compose, name):
    assert compose("experiment=caption_base", f"name={name}", "seed=3").name == name
    assert compose("experiment=caption_base", f"data.path=/data/{name}/a b").data.path == f"/data/{name}/a b"


def test_what_hydra_s_grammar_takes_is_left_as_it_is():
    for token in ("seed=1,2", "optim.lr=1e-3", "name=null", "data.path=a/b-c.d", "x=a:b", "-m", "x={a: é}", "x='é'"):
        assert hydra_override(token) == token
    assert hydra_override("name=a,é,b=c") == 'name=a,"é","b=c"'


def test_half_a_character_in_a_caption_is_trained_and_reported(command, train_tiny, shapes):
    lines = (shapes / "captions.jsonl").read_text().replace("a red square", "a red \\ud83d square")
    (shapes / "captions.jsonl").write_text(lines)
    outcome = train_tiny()
    assert (outcome.status, outcome.err) == (0, "")
    (folder,) = shapes.parent.glob("runs/*/*/seed=0")
    assert "a red � square" in (folder / "report.html").read_bytes().decode("utf-8")
    for again in (evaluate, report):
        assert command(again, f"run={folder}").status == 0


def test_a_value_that_hydra_cannot_read_is_refused_in_one_line(command):
    assert hydra_override("a=[1") == "a=[1"
    assert "cannot read 'train.steps=[1'" in command(train, "experiment=caption_base", "train.steps=[1").mistake


def test_a_run_folder_that_cannot_be_read(trained, train_tiny):
    folder: Path = trained()
    (folder / "config.yaml").write_text("train: {stepz: 3}\n")
    assert "config.yaml: is damaged (it does not have the checksum it was written with)" in train_tiny().mistake
    (folder / "manifest.jsonl").unlink()  # as in a run that is older than the manifest
    assert "train.stepz: no such setting; did you mean train.steps?" in train_tiny().mistake


def test_every_checkpoint_is_damaged(trained, train_tiny):
    folder: Path = trained()
    (folder / "checkpoints/step=000003/state.pt").write_bytes(b"")
    assert re.search(r"all 1 checkpoints in .* are damaged; delete that folder to start again", train_tiny().mistake)
