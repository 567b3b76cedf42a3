"""SigLIP, SigLIP 2, PE-Core and MetaCLIP of open_clip and transformers: the same outputs and gradients in our runs."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip import get_model_config, list_models
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from mmlm import convert, export, train
from mmlm.core.errors import UserError
from mmlm.data.tokenizers.siglip import Siglip
from mmlm.experiment.saved_run import load_run
from mmlm.pretrained import from_pretrained
from mmlm.pretrained.open_clip_towers import is_two_towers, open_clip_towers
from tests.pretrained import tiny_towers  # registers timm's tiny models

CONTEXT = 8
VOCABULARY = 1100
"""Ids of a text tower: above what the check of a config assumes a tokenizer to have."""
ODD = ["A photo of a CAT!", "red_dog", "", "Étoile — ß? &amp; 日本", "a " * 40, "snow\tsnow\n</s> <unk> dog", "x's (y)"]
CPU = torch.device("cpu")


def randomise(model: nn.Module) -> nn.Module:
    """Every weight random, so that none hides behind a 0 or a 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.copy_(0.25 * torch.randn(parameter.shape) + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


def compare(
    folder: Path, image_of: Callable[[Tensor], Tensor], text_of: Callable[[Tensor], Tensor], theirs: nn.Module
) -> None:
    """Embeddings to 1e-5 and all gradients to 1e-4, in float64."""
    run = load_run(str(folder), CPU)
    ours = run.model.double()
    assert ours.text_encoder is not None
    theirs.double()
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    first, end = run.tokenizer.start_id(None), run.tokenizer.end_id
    texts = [[first, *row, end] for row in ([5, 6, 7], [8], [9, 10, 11, 12])]
    tokens, lengths = torch.zeros(3, 6, dtype=torch.int64), torch.tensor([len(text) for text in texts])
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    image = F.normalize(image_of(ours.encoder.normalize(images)), dim=-1)
    text = F.normalize(text_of(tokens), dim=-1)
    own_image, own_text = ours.encode_image(images).embedding, ours.encode_text(tokens, lengths)
    torch.testing.assert_close(own_image, image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own_text, text, rtol=1e-5, atol=1e-5)
    mixed = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ((image @ text.T).logsumexp(1).sum() + (mixed * image).sum()).backward()
    ((own_image @ own_text.T).logsumexp(1).sum() + (mixed * own_image).sum()).backward()
    # Tensors are cut and joined differently, so all numbers of all gradients are compared, in the order of their size.
    own, other = sorted_gradients(ours), sorted_gradients(theirs)
    least = min(len(own), len(other))  # rows of ids that no tokenizer makes are left out of ours
    torch.testing.assert_close(own[-least:], other[-least:], rtol=1e-4, atol=1e-9)
    assert other[:-least].abs().sum() == 0 or least == len(other)
    assert all(p.grad is not None for p in ours.parameters()), "a weight without a gradient would stall DDP"


def sorted_gradients(model: nn.Module) -> Tensor:
    """The sizes of all numbers in all gradients, but those of single numbers, which belong to the loss."""
    return (
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None and p.ndim]).abs().sort().values
    )


def padded(tokens: Tensor, lengths: list[int], fill: int, start: int) -> Tensor:
    """int64[C, CONTEXT]: texts as their libraries get them, from ``start`` on."""
    rows = torch.full((len(tokens), CONTEXT), fill)
    for row, length in enumerate(lengths):
        rows[row, : length - start] = tokens[row, start:length]
    return rows


LENGTHS = [5, 3, 6]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return tiny_towers.siglip_tokenizer(tmp_path / "tokenizer")


def imported(command: Callable, tmp_path: Path, *arguments: str) -> Path:
    outcome = command(convert, *arguments, f"to={tmp_path / 'run'}")
    assert (outcome.status, outcome.err) == (0, ""), outcome
    assert f"python -m mmlm.train init_from.run={tmp_path / 'run'} data=PATH" in outcome.out
    return tmp_path / "run"


# open_clip


def siglip_config(tanh: bool) -> dict:
    """open_clip's SigLIP (or, with tanh, SigLIP 2) at tiny sizes."""
    return {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "tiny_siglip_of_tests",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "hf_tokenizer_name": "nowhere/siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 16,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            **({"act_kwargs": {"approximate": "tanh"}} if tanh else {}),
        },
    }


PE_CORE = {
    "embed_dim": 20,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "tiny_pe_core_of_tests",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": None,
    },
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
METACLIP = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def of_open_clip(config: dict) -> CLIP | CustomTextCLIP:
    towers = (CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]))
    more = {"init_logit_bias": config["init_logit_bias"]} if "init_logit_bias" in config else {}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    model = kind(config["embed_dim"], *towers, quick_gelu=config.get("quick_gelu", False), **more)
    model.logit_scale.data.fill_(4.0)
    return randomise(model)


@pytest.mark.parametrize("name", ["siglip", "siglip2", "pe_core", "metaclip", "metaclip2"])
def test_open_clip_s_towers(command, tmp_path, tokenizer, name):
    many = {"hf_tokenizer_name": "nowhere/xlm", "pool_type": "eos", "eos_id": 1, "vocab_size": VOCABULARY}
    worldwide = METACLIP | {"text_cfg": METACLIP["text_cfg"] | many}
    configs = {"siglip": siglip_config(False), "siglip2": siglip_config(True), "pe_core": PE_CORE, "metaclip": METACLIP}
    configs["metaclip2"] = worldwide
    config, is_siglip = configs[name], name.startswith("siglip")
    assert is_two_towers(config)
    theirs = of_open_clip(config)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(config))
    files = (f"from_open_clip={tmp_path / 'w.safetensors'}", f"model={tmp_path / 'm.json'}")
    folder = imported(
        command, tmp_path, *files, *([f"tokenizer={tokenizer}"] if is_siglip or name == "metaclip2" else [])
    )
    fill, start = (1, 1) if is_siglip else (0, 0)
    compare(folder, theirs.encode_image, lambda t: theirs.encode_text(padded(t, LENGTHS, fill, start)), theirs)
    loss = load_run(str(folder), CPU).config.objective["objectives"]["sigmoid" if is_siglip else "contrastive"]
    assert loss["temperature"] == pytest.approx(math.exp(-4.0))
    if is_siglip:
        assert loss["bias"] == -10


# transformers

VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": CONTEXT,
}


@pytest.mark.parametrize("name", ["siglip", "clip", "metaclip_2"])
def test_transformers_towers(command, tmp_path, tokenizer, name):
    if name == "siglip":
        text = TEXT | {"vocab_size": VOCABULARY, "projection_size": 24}
        theirs = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    elif name == "clip":
        text = TEXT | {"vocab_size": 49408, "hidden_act": "quick_gelu"}
        theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20))
    else:
        ids = {"vocab_size": VOCABULARY, "bos_token_id": 50, "eos_token_id": 1, "pad_token_id": 0}
        theirs = MetaClip2Model(MetaClip2Config(text_config=TEXT | ids, vision_config=VISION, projection_dim=20))
    randomise(theirs)
    theirs.logit_scale.data.fill_(4.0)
    if name == "siglip":
        theirs.logit_bias.data.fill_(-12.0)
    theirs.save_pretrained(tmp_path / "theirs")
    tiny_towers.siglip_tokenizer(tmp_path / "theirs")
    folder = imported(command, tmp_path, f"from_transformers={tmp_path / 'theirs'}")
    fill, start = (1, 1) if name == "siglip" else (0, 0)

    def text_of(tokens: Tensor) -> Tensor:
        return theirs.get_text_features(input_ids=padded(tokens, LENGTHS, fill, start)).pooler_output

    compare(folder, lambda pixels: theirs.get_image_features(pixel_values=pixels).pooler_output, text_of, theirs)
    if name == "siglip":
        loss = load_run(str(folder), CPU).config.objective["objectives"]["sigmoid"]
        assert (loss["temperature"], loss["bias"]) == (pytest.approx(math.exp(-4.0)), -12)


def test_siglip_s_ids_are_open_clip_s_on_odd_texts(tokenizer):
    theirs = HFTokenizer(str(tokenizer), context_length=CONTEXT, clean="canonicalize")(ODD)
    ours = Siglip(str(tokenizer))
    assert ours.own_pad_id == 1
    for text, expected in zip(ODD, theirs.tolist(), strict=True):
        ids = ours.encode(text, None, CONTEXT + 1)[1:]
        assert ids + [1] * (CONTEXT - len(ids)) == expected, text


REFUSED = ("ViT-SO400M-16-SigLIP-i18n-256", "ViT-bigG-14-quickgelu")
"""The first has no projection of its text, the second an image tower of another shape than ``encoder=vit`` has."""


@pytest.mark.parametrize(
    ("beginning", "at_least"), [("ViT-.*SigLIP", 20), ("PE-Core", 5), ("ViT-.*-quickgelu", 4), ("ViT-.*SigLIP2", 8)]
)
def test_every_configuration_of_the_families_is_accepted(tokenizer, beginning, at_least):
    """Without weights, it is the names of the weights that are missing."""
    names = [name for name in list_models() if re.match(beginning, name) and name not in REFUSED]
    assert len(names) >= at_least
    for name in names:
        config = get_model_config(name)
        assert is_two_towers(config), name
        own = str(tokenizer) if "SigLIP" in name or "worldwide" in name else None
        with pytest.raises(UserError, match=r"^the open_clip weights cannot be converted: it has no "):
            open_clip_towers(config, {}, own)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vision_cfg": {"timm_pool": "avg"}},
            "vision_cfg.timm_pool=avg has no counterpart in our model; it has to be map",
        ),
        ({"text_cfg": {"pool_type": "argmax"}}, "text_cfg.pool_type=argmax has no counterpart"),
        ({"text_cfg": {"act_kwargs": {"approximate": "x"}}}, "act_kwargs={'approximate': 'x'} have no counterpart"),
        ({"vision_cfg": {"timm_model_name": "no_such_vit"}}, "encoder.name: timm has no model 'no_such_vit'"),
    ],
)
def test_configurations_that_ours_cannot_be_are_refused(command, tmp_path, tokenizer, change, message):
    config = siglip_config(False)
    for section, values in change.items():
        config[section] = config[section] | values
    (tmp_path / "m.json").write_text(json.dumps(config))
    save_file(of_open_clip(siglip_config(False)).state_dict(), tmp_path / "w.safetensors")
    files = (f"from_open_clip={tmp_path / 'w.safetensors'}", f"model={tmp_path / 'm.json'}", f"tokenizer={tokenizer}")
    assert message in command(convert, *files, f"to={tmp_path / 'run'}").mistake
    assert not (tmp_path / "run").exists()


def test_weights_without_a_temperature_are_told_and_take_the_one_that_is_given(command, tmp_path, tokenizer):
    config = siglip_config(False)
    (tmp_path / "m.json").write_text(json.dumps(config))
    weights = of_open_clip(config).state_dict()
    files = (f"from_open_clip={tmp_path / 'w.safetensors'}", f"model={tmp_path / 'm.json'}", f"tokenizer={tokenizer}")
    to = f"to={tmp_path / 'run'}"
    save_file(weights, tmp_path / "w.safetensors")
    assert "temperature: " in (mistake := command(convert, *files, to, "temperature=0.1").mistake)
    assert "has its own; leave it out" in mistake
    save_file({k: v for k, v in weights.items() if not k.startswith("logit")}, tmp_path / "w.safetensors")
    assert "has none, and none is guessed; give temperature=0.01" in command(convert, *files, to).mistake
    assert "give bias=-10" in command(convert, *files, to, "temperature=0.02").mistake
    assert not (tmp_path / "run").exists()
    assert "temperature 0.02, bias -7" in command(convert, *files, to, "temperature=0.02", "bias=-7").out


def test_siglip_is_shared_and_trains_on_with_its_own_loss_and_with_the_softmax(command, tmp_path, tokenizer, shapes):
    """The bias belongs to the sigmoid loss alone, so the softmax leaves no weight without a gradient (see ``compare``).

    The temperature of another loss than its own is not guessed: it is said, and can be set.
    """
    config = siglip_config(False)
    save_file(of_open_clip(config).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "m.json").write_text(json.dumps(config))
    files = (f"from_open_clip={tmp_path / 'w.safetensors'}", f"model={tmp_path / 'm.json'}", f"tokenizer={tokenizer}")
    folder = imported(command, tmp_path, *files)
    assert command(export, f"run={folder}", f"to={tmp_path / 'shared'}").status == 0
    shared, run = from_pretrained(tmp_path / "shared"), load_run(str(folder), CPU)
    ids = torch.tensor([run.tokenizer.encode("a red dog", None, CONTEXT + 1)])
    expected = run.model.encode_text(ids, torch.tensor([ids.shape[1]]))
    torch.testing.assert_close(shared.encode_text(["A red dog!"]), expected.detach(), rtol=1e-5, atol=1e-6)
    small = ("train.steps=1", "train.batch_size=4", "device=cpu", f"runs={tmp_path / 'runs'}", "train.save_every=null")
    common = (f"init_from.run={folder}", f"data={shapes}", *small)
    own = command(train, *common)
    assert own.status == 0, own
    assert "learning rate" not in own.err, "the weights have not been trained by us: the rate is the experiment's"
    row = json.loads(next((tmp_path / "runs").glob("*/*/*/metrics.jsonl")).read_text().splitlines()[0])
    assert row["train/sigmoid/temperature"] == pytest.approx(math.exp(-4.0), rel=1e-4)
    assert row["train/sigmoid/bias"] == pytest.approx(-10.0)
    other = command(train, *common, "objective=contrastive", "objective.objectives.contrastive.temperature=0.02")
    assert other.status == 0, other
    told = " ".join(other.out.split())
    assert "objective.objectives.contrastive: starts from its settings (temperature=0.02)" in told
    assert f"{folder} has none of it" in told


@pytest.mark.slow
def test_siglip_trains_on_with_the_softmax_on_two_ranks(command, tmp_path, shapes):
    """Elsewhere the bias, which the softmax does not read, ends a training of several ranks (open_clip #1076)."""
    text = TEXT | {"vocab_size": VOCABULARY, "projection_size": 24}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(tmp_path / "theirs")
    tiny_towers.siglip_tokenizer(tmp_path / "theirs")
    folder = imported(command, tmp_path, f"from_transformers={tmp_path / 'theirs'}")
    softmax = ("objective=contrastive", "objective.objectives.contrastive.temperature=0.02", "train.steps=2")
    small = ("train.batch_size=4", "device=cpu", "evaluators=retrieval", "train.save_every=null")
    rows = {}
    for name, ranks in (("one", ()), ("two", ("launcher=local", "processes=2"))):
        at = ("train.log_every=1", f"runs={tmp_path / 'runs'}", f"name={name}")
        outcome = command(train, f"init_from.run={folder}", f"data={shapes}", *softmax, *small, *at, *ranks)
        assert outcome.status == 0, outcome
        path = next((tmp_path / "runs").glob(f"*/{name}/*/metrics.jsonl"))
        rows[name] = [json.loads(line) for line in path.read_text().splitlines()]
    losses = {name: [row["train/loss"] for row in rows[name] if "train/loss" in row] for name in rows}
    assert len(losses["one"]) == 2
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)


def test_naflex_is_refused_in_one_line(command, tmp_path):
    vision = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 4}
    text = TEXT | {"vocab_size": VOCABULARY, "projection_size": 24}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(tmp_path / "naflex")
    mistake = command(convert, f"from_transformers={tmp_path / 'naflex'}", f"to={tmp_path / 'run'}").mistake
    assert "is a siglip2 (SigLIP 2 in its own aspect ratio, NaFlex, has no images of one size)" in mistake
    assert not (tmp_path / "run").exists()
