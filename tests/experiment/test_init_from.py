"""``init_from``: the weights and the tokenizer of a run or a file as a start."""

from pathlib import Path

import pytest
import timm
import torch

from mmlm.checkpoints.weights import save_weights
from mmlm.core.errors import UserError
from mmlm.experiment.experiment import build_experiment
from mmlm.experiment.run_identity import run_folder
from mmlm.experiment.saved_run import load_run
from mmlm.optim.lora import is_adapter, plain_name
from mmlm.pretrained.model import MmlmModel
from mmlm.record.folder import CHECKPOINTS, TOKENIZER
from mmlm.record.manifest import accept
from tests.conftest import OTHER_TOKENIZER
from tests.equality import same, weights_of

CPU = torch.device("cpu")


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
    taken = build("seed=5", f"init_from.weights={file}")
    assert same(weights_of(taken), run.model.state_dict())
    line = "objective.objectives.contrastive: starts from its settings (temperature=0.07): {} has none of it"
    assert list(taken.started) == [line.format(file)], "no file of a model alone has a temperature"


def test_a_siglip_tower_of_timm_is_taken_from_a_file_by_the_model_s_names(build, tmp_path):
    """Its attention pool, which the encoder leaves out, is what the file has more."""
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
    tower = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **sizes).eval()
    file = tmp_path / "siglip.safetensors"
    save_weights({f"encoder.vit.{name}": tensor for name, tensor in tower.state_dict().items()}, file)
    siglip = ("encoder.name=vit_base_patch16_siglip_224", "encoder.class_token=true", "encoder.stem=patch")
    taken = (f"init_from.weights={file}", "init_from.parts=[encoder]")
    with pytest.raises(UserError, match=r"unexpected there \('encoder.vit.attn_pool."):
        build(*siglip, *taken)
    encoder = build(*siglip, *taken, "init_from.unexpected=[encoder.vit.attn_pool.*]").model.encoder.eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder(images).tokens, tower.forward_features(encoder.normalize(images)))


def test_the_file_of_an_exported_model_brings_its_tokenizer(trained, build, tmp_path, write_captions, shapes):
    run = load_run(str(trained()), CPU)
    MmlmModel.from_run(run).save_pretrained(tmp_path / "saved")
    other = tmp_path / "other"
    write_captions(other, [{"image": f"../shapes/{f.name}", "caption": "ein rotes Haus"} for f in shapes.glob("*.png")])
    data = (f"data.train.folder={other}", f"data.validation.validation.folder={other}")
    data += ("data.train.outside=true", "data.validation.validation.outside=true")
    weights = f"init_from.weights={tmp_path / 'saved' / 'model.safetensors'}"
    brought, own = build(*data, weights).tokenizer, build(*data, weights, "init_from.parts=[encoder]").tokenizer
    ids = [tokenizer.encode("ein rotes Haus", None, 24) for tokenizer in (brought, run.tokenizer, own)]
    assert ids[0] == ids[1] != ids[2]


def test_a_run_whose_weights_do_not_fit_its_config_is_one_line(trained):
    folder = trained()
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("  depth: 1\n", "  depth: 2\n", 1))
    accept(folder, file.name)
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
    folders = (f"data.train.folder={other}", f"data.validation.validation.folder={other}")
    data = (*folders, "data.train.outside=true", "data.validation.validation.outside=true")
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
            ("tokenizer._target_=mmlm.data.tokenizers.open_clip.OpenClip", "~tokenizer.vocab_size", *OTHER_TOKENIZER),
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
    with pytest.raises(UserError, match=r"byte_pair\.json: is damaged \(it is missing\); restore it"):
        build_experiment(tiny_config(), run_folder(tiny_config()))
