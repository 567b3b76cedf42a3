"""Config to live parts: what is built, with which weights, and what does not fit together."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from mmlm import train
from mmlm.checkpoints.checkpoint import load_checkpoint, mark_best
from mmlm.core.errors import UserError
from mmlm.experiment.build import build_evaluators, build_model, build_splits
from mmlm.experiment.config_file import load_config, save_config
from mmlm.experiment.device import choose_device, seed_everything
from mmlm.experiment.experiment import build_experiment
from mmlm.experiment.saved_run import exported_weights, load_run
from mmlm.record.folder import CHECKPOINTS, TOKENIZER, find_run, newest_run
from tests.equality import same, weights_of

CPU = torch.device("cpu")


# Parts


def test_the_parts_fit_together(build):
    experiment = build("train.ema_decay=0.9")
    model, tokenizer = experiment.model, experiment.tokenizer
    assert len(experiment.train_source) == experiment.state.loader.examples_per_epoch == 8
    assert model.decoder.vocab_size == tokenizer.vocab_size == 280
    assert model.decoder.max_tokens == 24
    assert model.encoder.grid == (2, 2)
    assert model.image_projection.out_features == 16
    assert experiment.device == CPU
    assert list(experiment.validation) == ["validation"]
    assert list(experiment.evaluators) == ["loss", "retrieval", "captioning", "image_use_gap"]
    trained = {id(p) for group in experiment.state.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in experiment.state.train_step.parameters()}
    assert experiment.state.ema.tensors.keys() == experiment.state.train_step.state_dict().keys()
    assert (experiment.state.step, experiment.state.loader.position) == (0, 0)


def test_building_writes_nothing(build, tmp_path):
    build()
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "runs").exists()


def test_the_seed_decides_the_start(build):
    first, again, other = (weights_of(build(f"seed={seed}")) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_seeds_reach_every_generator():
    def draws() -> tuple[float, float]:
        return float(np.random.rand()), float(torch.rand(()))

    seed_everything(5)
    first = draws()
    seed_everything(5)
    assert draws() == first
    seed_everything(-5)
    assert draws() != first


def test_evaluators_get_the_language_of_the_data(tiny_config):
    assert build_evaluators(tiny_config("data.language=en"))["captioning"].language == "en"
    assert build_evaluators(tiny_config())["captioning"].language is None


def test_evaluation_images_are_not_augmented(tiny_config, build):
    experiment = build("transform=augment")
    splits = build_splits(tiny_config(), experiment.tokenizer, tiny_config().data.validation, "data.validation")
    for augmented, plain in zip(experiment.validation["validation"], splits["validation"], strict=True):
        assert torch.equal(augmented.images, plain.images)


def test_a_batch_larger_than_the_data(build):
    with pytest.raises(UserError) as refused:
        build("train.batch_size=9")
    assert str(refused.value) == (
        "train.batch_size: 9 is larger than the data set, which has 8 examples; use at most 8"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.image_size=18",), "encoder.patch_size: image size 18 is not a multiple of patch size 8"),
        (("decoder.num_heads=5",), "num_heads: 5 does not divide the width 32"),
        (("bridge.num_heads=5",), "num_heads: 5 does not divide the width 32"),
        (("encoder.name=resnet18",), "encoder.name"),
        (("tokenizer.vocab_size=20",), "tokenizer.vocab_size: 20 must be at least"),
        (("data.max_tokens=2",), "max_tokens=2 must be at least 3"),
        (("objective.weights.contrastive=0", "objective.weights.captioning=0"), "every weight is 0"),
        (("train.ema_decay=1.5",), "train.ema_decay: 1.5 must lie in [0, 1)"),
        (("data.captions_per_image=0",), "captions_per_image=0 must be at least 1"),
        (("optim.betas=[0.9]",), "optim.betas"),
    ],
)
def test_parts_that_do_not_fit_are_refused(build, overrides, message):
    with pytest.raises(UserError) as refused:
        build(*overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device: 'gpu' is not one of auto, cpu, cuda"):
        choose_device("gpu")


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="torch finds no CUDA device; use device=cpu or device=auto"):
        choose_device("cuda")


# Finding and loading runs


def make_run(folder: Path, config) -> Path:
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    return folder


def test_a_run_is_found_from_above_where_it_is_the_only_one(tiny_config, tmp_path):
    one = make_run(tmp_path / "a/b/seed=0", tiny_config())
    (one / "wandb/files").mkdir(parents=True)
    (one / "wandb/files/config.yaml").write_text("not: ours\n")
    assert find_run(str(one)) == find_run(str(tmp_path / "a")) == find_run(str(tmp_path / "a/b")) == one
    make_run(tmp_path / "a/c/seed=0", tiny_config())
    with pytest.raises(UserError, match=r"a holds 2 runs; name one, such as .*a/b/seed=0"):
        find_run(str(tmp_path / "a"))


def test_the_newest_run_is_the_one_that_wrote_metrics_last(tiny_config, tmp_path):
    old, new, aside = (
        make_run(tmp_path / name, tiny_config()) for name in ("b/seed=0", "a/seed=0", "b/seed=0.before-1")
    )
    for seconds, folder in enumerate((old, new, aside)):
        (folder / "metrics.jsonl").write_text("")
        os.utime(folder / "metrics.jsonl", (seconds, seconds))
    (old / "scores.json").write_text("{}")  # evaluated after all of them
    assert newest_run(str(tmp_path)) == (new, 2)
    assert newest_run(str(old)) == (old, 1)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{name} is no run folder \(it has no config\.yaml\)"):
        find_run(str(tmp_path / name))


def test_a_run_without_a_checkpoint(tiny_config, build, tmp_path):
    folder = make_run(tmp_path / "a/seed=0", tiny_config())
    build().tokenizer.save(folder / TOKENIZER)
    with pytest.raises(UserError, match="has no checkpoint yet; let it train until it saves one"):
        load_run(str(folder), CPU)


def test_a_run_comes_back_as_it_was_trained(trained):
    folder = trained("train.eval_every=1", "train.save_every=1", "train.keep_last=9")
    run = load_run(str(folder), CPU)
    assert (run.folder, run.step, run.config.train.steps) == (folder, 3, 3)
    assert not run.model.training
    saved = load_checkpoint(folder / CHECKPOINTS / "step=000003").weights["model"]
    assert same(run.model.state_dict(), {name.removeprefix("model."): value for name, value in saved.items()})
    assert run.tokenizer.decode(run.tokenizer.encode("a red circle", None, 24)) == "a red circle"


def test_a_run_is_loaded_without_asking_for_pretrained_weights(trained, monkeypatch):
    folder, asked = trained(), []
    monkeypatch.setattr(
        "mmlm.experiment.saved_run.build_model", lambda *a, **k: asked.append(k) or build_model(*a, **k)
    )
    assert load_run(str(folder), CPU).step == 3
    assert asked == [{"load_weights": False}]


@pytest.mark.parametrize("load_weights", [True, False])
def test_pretrained_weights_are_asked_for_only_where_they_are_wanted(tiny_config, monkeypatch, load_weights):
    pretrained, create = [], timm.create_model

    def recorded(name: str, **settings: object) -> object:
        pretrained.append(settings.pop("pretrained", False))
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", recorded)
    named = ("encoder=vit", "encoder.pretrained=true", "encoder.width=null", "encoder.depth=null")
    config = tiny_config(*named, "encoder.num_heads=null")
    build_model(config, 300, load_weights)
    assert pretrained == [load_weights]


def test_the_average_is_exported(trained):
    folder = trained("train.ema_decay=0.9")
    checkpoint = load_checkpoint(folder / CHECKPOINTS / "step=000003").weights
    assert not same(checkpoint["model"], checkpoint["ema"], "model.decoder")
    run = load_run(str(folder), CPU)
    assert same(run.model.state_dict(), {key.removeprefix("model."): value for key, value in checkpoint["ema"].items()})


def test_the_best_checkpoint_is_exported_rather_than_the_last(trained):
    folder = trained("train.save_every=1", "train.keep_last=9")
    config = load_config(folder / "config.yaml")
    assert exported_weights(folder, config)[0] == 3
    mark_best(folder / CHECKPOINTS, folder / CHECKPOINTS / "step=000002", "validation/x", 0.5)
    step, weights = exported_weights(folder, config)
    saved = load_checkpoint(folder / CHECKPOINTS / "step=000002").weights["model"]
    assert step == 2
    assert same(weights, {key.removeprefix("model."): value for key, value in saved.items()})


def test_the_tokenizer_of_the_run_is_kept_when_its_data_changes(tiny_config, trained, shapes, write_captions):
    folder = trained()
    first = load_run(str(folder), CPU).tokenizer
    lines = [{"image": file.name, "caption": "zzzz qqqq zzzz qqqq"} for file in shapes.glob("*.png")]
    write_captions(shapes, lines)
    experiment = build_experiment(tiny_config(), folder)
    assert experiment.tokenizer.encode("zzzz", None, 24) == first.encode("zzzz", None, 24)
    fresh = build_experiment(tiny_config(), folder / "elsewhere").tokenizer
    assert fresh.encode("zzzz", None, 24) != first.encode("zzzz", None, 24)


# Cells that train


def test_text_alone_and_images_train_together(train_tiny, shapes):
    """Lines of ``"image": null`` train the decoder's own objective; evaluation wants images and has its own file."""
    lines = [{"image": file.name, "caption": "a red thing"} for file in sorted(shapes.glob("*.png"))[:4]]
    lines += [{"image": None, "caption": f"words {i} alone"} for i in range(4)]
    (shapes / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = ("objective=text_lm", "train.batch_size=8", "train.eval_every=null", "train.log_every=1")
    outcome = train_tiny(*settings, "data.train.captions=mixed.jsonl")
    assert (outcome.status, outcome.err) == (0, "")
    found = re.search(r" captioning ([\d.]+)  text_lm ([\d.]+) .*captioning/accuracy .*text_lm/accuracy ", outcome.out)
    assert all(float(value) > 1 for value in found.groups())


def test_recurrent_decoder_and_text_tower_train_and_are_evaluated(command, tiny):
    kept = [token for token in tiny if not token.startswith("decoder.num_heads")]
    outcome = command(train, *kept, "decoder=lstm", "text_encoder=transformer", "model.width=32")
    assert (outcome.status, outcome.err) == (0, "")
