"""``python -m mmlm.convert``: open_clip's CoCa weights become a run that captions and trains, and go back exactly."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import load_file, save_file

from mmlm import caption, convert
from mmlm.checkpoints.checkpoint import load_checkpoint
from mmlm.commands.convert import architecture_of
from mmlm.data.images import read_image
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.experiment import build_experiment
from mmlm.experiment.saved_run import load_run

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 24,
        "head_width": 12,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    "custom_text": True,
}


@pytest.fixture(scope="module")
def theirs() -> CoCa:
    """open_clip's own model, tiny, every weight initialised."""
    torch.manual_seed(0)
    model = CoCa(**{key: value for key, value in MODEL.items() if key != "custom_text"}).eval()
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.02)
    model.logit_scale.data.fill_(3.0)
    return model


@pytest.fixture
def files(theirs, tmp_path) -> tuple[Path, Path]:
    """Weights and configuration as open_clip writes them."""
    weights, model = tmp_path / "coca.safetensors", tmp_path / "coca.json"
    save_file(theirs.state_dict(), weights)
    model.write_text(json.dumps(MODEL))
    return weights, model


@pytest.fixture
def converted(command, files, tmp_path) -> Path:
    """The run folder."""
    weights, model = files
    outcome = command(convert, f"from_open_clip={weights}", f"model={model}", f"to={tmp_path / 'run'}")
    assert (outcome.status, outcome.err) == (0, ""), outcome
    assert "objective.objectives.contrastive.temperature=0.04979" in outcome.out  # exp(-3)
    return tmp_path / "run"


def test_a_converted_run_embeds_as_open_clip_does_and_captions(converted, command, theirs, shapes):
    run = load_run(str(converted), torch.device("cpu"))
    image = sorted(shapes.glob("*.png"))[0]
    pixels = read_image(image)[None]
    ids = run.tokenizer.encode("a red circle", None, 12)
    padded = torch.tensor([[*ids, *[0] * (12 - len(ids))]])
    with torch.no_grad():
        features = run.model.encode_image(pixels)
        text = run.model.encode_text(torch.tensor([ids]), torch.tensor([len(ids)]))
        normalised = run.model.encoder.normalize(pixels)
        torch.testing.assert_close(features.embedding, theirs.encode_image(normalised), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(text, theirs.encode_text(padded), rtol=1e-5, atol=1e-5)
        logits = run.model.decode(torch.tensor([ids]), run.model.start_decoding(features))
        expected = theirs(normalised, padded, output_labels=False)["logits"][:, : len(ids)]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    outcome = command(caption, f"run={converted}", str(image))
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{image}\t")


@pytest.mark.parametrize("name", ["back.safetensors", "new/back.pt"])
def test_the_way_back_is_exact(converted, command, theirs, tmp_path, name):
    back = tmp_path / name
    outcome = command(convert, f"run={converted}", f"to_open_clip={back}")
    assert (outcome.status, outcome.err) == (0, "")
    weights = load_file(back) if back.suffix == ".safetensors" else torch.load(back, weights_only=True)
    expected = theirs.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    theirs.load_state_dict(weights)
    assert "is there already" in command(convert, f"run={converted}", f"to_open_clip={back}").mistake


def test_training_starts_from_the_converted_weights(converted, files, compose, shapes, tmp_path):
    smaller = [f"{key}={value}" for key, value in architecture_of(str(files[1]))[1].items()]
    folders = (f"data.train.folder={shapes}", f"data.validation.validation.folder={shapes}")
    training = ("train.batch_size=4", "device=cpu", f"init_from.run={converted}")
    config = check_config(compose("experiment=coca_vit_b_32", "data=folder", *folders, *smaller, *training))
    experiment = build_experiment(config, tmp_path / "new")
    kept = load_checkpoint(converted / "checkpoints" / "step=000000").weights["model"]
    state = experiment.model.state_dict()
    assert all(torch.equal(state[key.removeprefix("model.")], kept[key]) for key in kept if key.startswith("model."))


def test_checkpoints_of_open_clip_s_training_are_read(files, theirs, command, tmp_path):
    """As its trainer saves them: under ``state_dict``, named by DistributedDataParallel, beside an optimizer."""
    weights = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": weights, "optimizer": {}}, tmp_path / "epoch_3.pt")
    (tmp_path / "hub.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    arguments = (f"from_open_clip={tmp_path / 'epoch_3.pt'}", f"model={tmp_path / 'hub.json'}", f"to={tmp_path / 'a'}")
    assert command(convert, *arguments).status == 0
    kept = load_checkpoint(tmp_path / "a" / "checkpoints" / "step=000000").weights["model"]
    assert torch.equal(kept["model.decoder.cls_embedding"], theirs.text.cls_emb)


@pytest.mark.parametrize("custom_text", [False, True])
def test_clip_becomes_a_model_that_embeds_as_it_does_and_has_a_decoder(command, shapes, tmp_path, custom_text):
    torch.manual_seed(0)
    vision = {key: value for key, value in MODEL["vision_cfg"].items() if not key.startswith("att")}
    text = {key: value for key, value in MODEL["text_cfg"].items() if key != "embed_cls"}
    towers = {"vision_cfg": vision | {"output_tokens": False}, "text_cfg": text | {"output_tokens": False}}
    parts = (20, CLIPVisionCfg(**towers["vision_cfg"]), CLIPTextCfg(**towers["text_cfg"]))
    clip = (CustomTextCLIP if custom_text else CLIP)(*parts).eval()
    (tmp_path / "clip.json").write_text(json.dumps({"embed_dim": 20, **towers}))
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    arguments = (f"from_open_clip={tmp_path}/clip.safetensors", f"model={tmp_path}/clip.json", f"to={tmp_path}/clip")
    outcome = command(convert, *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert "it embeds as CLIP does, and has to be trained to caption" in outcome.out
    run = load_run(str(tmp_path / "clip"), torch.device("cpu"))
    image = sorted(shapes.glob("*.png"))[0]
    pixels, ids = read_image(image)[None], run.tokenizer.encode("a red circle", None, 12)
    padded = torch.tensor([[*ids, *[0] * (12 - len(ids))]])
    with torch.no_grad():
        found = run.model.encode_image(pixels).embedding
        expected = clip.encode_image(run.model.encoder.normalize(pixels), normalize=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        found = run.model.encode_text(torch.tensor([ids]), torch.tensor([len(ids)]))
        torch.testing.assert_close(found, clip.encode_text(padded, normalize=True), rtol=1e-5, atol=1e-5)
    assert command(caption, f"run={tmp_path / 'clip'}", str(image)).status == 0
    assert run.model.decoder.head_weight is run.model.decoder.token_embedding.weight
    mistake = command(convert, f"run={tmp_path / 'clip'}", f"to_open_clip={tmp_path / 'b.pt'}").mistake
    assert "only runs of the architecture of experiment=coca_vit_b_32 can be converted" in mistake


class Evil:
    """A pickle that would touch a file."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_nothing_is_unpickled(files, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    mistake = command(convert, "from_open_clip=evil.pt", f"model={files[1]}", "to=a").mistake
    assert mistake.startswith("from_open_clip: evil.pt: holds more than tensors")
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("vision_cfg", {"attentional_pool": "parallel"}, "vision_cfg.attentional_pool=parallel has no counterpart"),
        ("vision_cfg", {"timm_model_name": "vit"}, "vision_cfg.timm_model_name=vit has no counterpart in our model"),
        ("vision_cfg", {"width": 2.5}, "vision_cfg.width=2.5 has to be a whole number"),
        ("text_cfg", {"hf_model_name": "roberta"}, "text_cfg.hf_model_name=roberta has no counterpart in our model"),
        (
            "text_cfg",
            {"embed_cls": False},
            "text_cfg.embed_cls=False has no counterpart in our model; it has to be True",
        ),
        ("text_cfg", {"width": 24}, "multimodal_cfg.width=16 must be the width of the text, 24"),
        ("multimodal_cfg", {"heads": 4}, "multimodal_cfg.heads=4 must be text_cfg.heads=2"),
        ("multimodal_cfg", {"layers": 2}, "no text_decoder.cross_attn.1.attn.in_proj_bias"),
        ("text_cfg", {"context_length": 10}, "'decoder.position_embedding' is [13, 16] there and [11, 16] here"),
        (None, {"quick_gelu": True}, "quick_gelu=True has no counterpart in our model; it has to be False"),
        (None, {"multimodal_cfg": None}, "its configuration has no multimodal_cfg, so it is no CLIP or CoCa"),
        (None, {"text_cfg": {}}, "text_cfg.embed_cls=False has no counterpart in our model; it has to be True"),
        (None, {"embed_dim": None}, "embed_dim=None has to be a whole number"),
        ("vision_cfg", {"layers": 0}, "vision_cfg.layers=0 has to be at least 1"),
        ("vision_cfg", {"width": 20}, "vision_cfg.width=20 has to be a multiple of vision_cfg.head_width=12"),
        ("vision_cfg", {"image_size": 20}, "vision_cfg.image_size=20 has to be a multiple of vision_cfg.patch_size=8"),
        ("vision_cfg", {"attn_pooler_heads": 3}, "embed_dim=16 has to be a multiple of vision_cfg.attn_pooler_heads=3"),
        ("vision_cfg", {"attn_pooler_queries": 1}, "vision_cfg.attn_pooler_queries=1 has to be at least 2"),
        ("text_cfg", {"heads": 3}, "text_cfg.width=16 has to be a multiple of text_cfg.heads=3"),
        ("text_cfg", {"heads": -2}, "text_cfg.heads=-2 has to be at least 1"),
    ],
)
def test_models_that_ours_cannot_be_are_refused(files, command, tmp_path, section, change, message):
    changed = MODEL | change if section is None else MODEL | {section: MODEL[section] | change}
    files[1].write_text(json.dumps(changed))
    mistake = command(convert, f"from_open_clip={files[0]}", f"model={files[1]}", f"to={tmp_path / 'a'}").mistake
    assert message in mistake
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("width", [20, 28])
def test_a_clip_whose_width_the_added_bridge_cannot_share_is_refused(files, command, tmp_path, width):
    vision = {key: MODEL["vision_cfg"][key] for key in ("image_size", "layers", "width", "head_width", "patch_size")}
    text = MODEL["text_cfg"] | {"width": width, "embed_cls": False}
    files[1].write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    mistake = command(convert, f"from_open_clip={files[0]}", f"model={files[1]}", f"to={tmp_path / 'a'}").mistake
    assert mistake.startswith(f"model: text_cfg.width={width} has to be a multiple of 8, the heads of the bridge")
    assert not (tmp_path / "a").exists()


def test_only_runs_of_the_architecture_go_back(trained, command, tmp_path):
    mistake = command(convert, f"run={trained()}", f"to_open_clip={tmp_path / 'a.pt'}").mistake
    assert "only runs of the architecture of experiment=coca_vit_b_32 can be converted" in mistake
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give from_open_clip=, model= and to=, or from_transformers= and to=, or run= and to_open_clip="),
        (
            ("run=a", "to=b"),
            "give from_open_clip=, model= and to=, or from_transformers= and to=, or run= and to_open_clip=",
        ),
        (
            ("from_open_clip=a.pt", "model=coca_ViT-B-33", "to=b"),
            "open_clip has no 'coca_ViT-B-33'; its CoCas are coca_",
        ),
        (
            ("from_open_clip=a.pt", "model=ViT-B-32-quickgelu", "to=b"),
            "from_open_clip: a.pt: there is no such file",
        ),
        (
            ("from_open_clip=a.pt", "model=coca_ViT-B-32", "to=b", "temperature=0.1"),
            "temperature: these weights have their own; leave it out",
        ),
        (("from_transformers=nowhere/at/all", "to=b"), "from_transformers: there is no folder 'nowhere/at/all'"),
        (("from_open_clip=a.pt", "model=no.json", "to=b"), "model: there is no file no.json"),
        (("from_open_clip=a.pt", "model=coca_ViT-B-32", "to=b"), "from_open_clip: a.pt: there is no such file"),
        (("run=a", "to_open_clip=b"), "a is no run folder"),
    ],
)
def test_mistakes_of_convert(command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in command(convert, *arguments).mistake


def test_the_sizes_of_released_models_are_those_of_the_experiment(compose):
    """coca_ViT-B-32 by name is ``experiment=coca_vit_b_32`` as it stands, and so for CLIP."""
    named = {"encoder.patch_size": 32, "encoder.width": 768, "encoder.depth": 12, "encoder.num_heads": 12}
    for model, of_model in {"coca_ViT-B-32": "coca_vit_b_32", "ViT-B-32": "clip_captioner_vit_b_32"}.items():
        experiment, settings = architecture_of(model)
        assert experiment == of_model
        config = compose(f"experiment={experiment}")
        for key, value in settings.items():
            node = config
            for name in key.split("."):
                node = node[name]
            assert (named[key] if node is None else node) == value, key
    _, large = architecture_of("coca_ViT-L-14")
    assert (large["encoder.depth"], large["model.width"], large["decoder.num_heads"]) == (24, 768, 12)
