"""Hugging Face vision towers against transformers itself, from small random checkpoints on the disk."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from mmlm.core.errors import UserError
from mmlm.model.encoders.hugging_face import HuggingFaceVision

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
FAMILIES = {  # model type: prefix tokens
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "vit": 1,
    "deit": 2,
    "beit": 1,
    "ijepa": 0,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 1,
}


def pixels(count: int = 2, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def settings_of(architecture: str) -> dict[str, int]:
    known = AutoConfig.for_model(architecture).to_dict()
    return {key: value for key, value in TINY.items() if key in known}


def tiny(architecture: str, image_size: int = 16, **arguments: object) -> HuggingFaceVision:
    torch.manual_seed(0)
    return HuggingFaceVision(image_size, architecture=architecture, settings=settings_of(architecture), **arguments)


@pytest.fixture
def saved(tmp_path):
    """A model with distinct random weights, saved for 16-pixel images, and its folder."""

    def save(architecture: str):
        torch.manual_seed(1)
        config = AutoConfig.for_model(architecture, **settings_of(architecture), image_size=16)
        model = AutoModel.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / architecture)
        return model, str(tmp_path / architecture)

    return save


def expected_tokens(model, architecture, images, mean, std):
    """What transformers gives for normalised images; CLIP's last norm, which it keeps for one token, on all."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    values = (images.float() / 255 - mean) / std
    interpolates = architecture in ("clip_vision_model", "siglip_vision_model", "vit", "deit", "ijepa")
    extra = {"interpolate_pos_encoding": True} if interpolates else {}
    with torch.no_grad():
        tokens = model(pixel_values=values, **extra).last_hidden_state
        norm = next((module for name, module in model.named_modules() if name.endswith("post_layernorm")), None)
        return norm(tokens) if architecture == "clip_vision_model" else tokens


COLOURS = {
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip_vision_model": ((0.5,) * 3, (0.5,) * 3),
    "vit": ((0.5,) * 3, (0.5,) * 3),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("image_size", [16, 32])
@pytest.mark.parametrize("architecture", COLOURS)
def test_tokens_are_those_of_transformers_at_the_own_and_another_image_size(saved, architecture, image_size):
    model, folder = saved(architecture)
    encoder = HuggingFaceVision(image_size, name_or_path=folder).eval()
    images = pixels(2, image_size)
    prefix, side = FAMILIES[architecture], image_size // 8
    expected = expected_tokens(model, architecture, images, *COLOURS[architecture])
    assert expected.shape[1] == prefix + side**2
    assert (encoder.grid, encoder.width, encoder.num_prefix_tokens) == ((side, side), 16, 0)
    torch.testing.assert_close(encoder(images).tokens, expected[:, prefix:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_gives_patch_tokens_and_every_parameter_a_gradient(architecture):
    encoder = tiny(architecture)
    out = encoder(pixels())
    assert out.tokens.shape == (2, 4, 16)
    assert out.tokens.dtype == torch.float32
    assert out.pooled is None is encoder.pooled_width
    (out.tokens * torch.rand(2, 4, 16)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("architecture", FAMILIES)
def test_prefix_tokens_stay_in_front_and_class_tokens_pool(architecture):
    prefix = FAMILIES[architecture]
    images, plain = pixels(), tiny(architecture).eval()
    if prefix == 0:
        with pytest.raises(UserError, match=r"^pool: 'cls' needs a class token"):
            tiny(architecture, pool="cls")
        with pytest.raises(UserError, match=r"^keep_prefix_tokens: "):
            tiny(architecture, keep_prefix_tokens=True)
    else:
        kept = tiny(architecture, pool="cls", keep_prefix_tokens=True).eval()
        out = kept(images)
        assert (kept.num_prefix_tokens, kept.pooled_width) == (prefix, 16)
        assert torch.equal(out.tokens[:, prefix:], plain(images).tokens)
        assert torch.equal(out.pooled, out.tokens[:, 0])
    mean = tiny(architecture, pool="mean").eval()(images)
    torch.testing.assert_close(mean.pooled, mean.tokens.mean(dim=1))


def test_the_pooled_class_token_is_clip_s_own(saved):
    model, folder = saved("clip_vision_model")
    encoder = HuggingFaceVision(16, name_or_path=folder, pool="cls").eval()
    with torch.no_grad():
        expected = model(pixel_values=encoder.normalize(pixels())).pooler_output
    torch.testing.assert_close(encoder(pixels()).pooled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("config", "kind"), [(CLIPConfig, CLIPModel), (SiglipConfig, SiglipModel)])
def test_the_vision_tower_of_a_whole_checkpoint_is_taken(config, kind, tmp_path):
    torch.manual_seed(1)
    model = kind(config(vision_config=TINY | {"image_size": 16}, text_config=TEXT)).eval()
    model.save_pretrained(tmp_path)
    encoder = HuggingFaceVision(16, name_or_path=str(tmp_path)).eval()
    with torch.no_grad():
        states = model.vision_model(pixel_values=encoder.normalize(pixels())).last_hidden_state
        expected = model.vision_model.post_layernorm(states)[:, 1:] if kind is CLIPModel else states
    torch.testing.assert_close(encoder(pixels()).tokens, expected, rtol=1e-4, atol=1e-5)
    assert not any("text" in name for name, _ in encoder.named_parameters())


def test_a_classifier_s_checkpoint_gives_its_tower(tmp_path):
    torch.manual_seed(1)
    model = ViTForImageClassification(ViTConfig(**TINY, image_size=16)).eval()
    model.save_pretrained(tmp_path)
    encoder = HuggingFaceVision(16, name_or_path=str(tmp_path)).eval()
    with torch.no_grad():
        expected = model.vit(pixel_values=encoder.normalize(pixels())).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(pixels()).tokens, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_checkpoints_are_trained_in_float32(tmp_path):
    model = AutoModel.from_config(AutoConfig.for_model("vit", **TINY, image_size=16)).half()
    model.save_pretrained(tmp_path)
    encoder = HuggingFaceVision(16, name_or_path=str(tmp_path))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert all(module.training for module in encoder.modules())


def test_the_colours_of_a_checkpoint_s_own_processor_are_used(saved):
    _, folder = saved("vit")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    CLIPImageProcessor(image_mean=mean, image_std=std).save_pretrained(folder)
    encoder = HuggingFaceVision(16, name_or_path=folder)
    torch.testing.assert_close(encoder.normalize.mean.flatten(), 255 * torch.tensor(mean))
    torch.testing.assert_close(encoder.normalize.std.flatten(), 255 * torch.tensor(std))


def test_without_weights_only_the_config_is_read(saved):
    model, folder = saved("dinov2")
    (Path(folder) / "model.safetensors").write_bytes(b"not weights")
    with torch.device("meta"):
        encoder = HuggingFaceVision(32, name_or_path=folder, load_weights=False)
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert (encoder.grid, encoder.width) == ((4, 4), model.config.hidden_size)
    with pytest.raises(UserError, match=r"^name_or_path: .* cannot be loaded"):
        HuggingFaceVision(32, name_or_path=folder)


def test_an_image_s_tokens_do_not_depend_on_the_rest_of_the_batch():
    encoder = tiny("clip_vision_model").double().train()
    images = pixels(3)
    together = encoder(images).tokens
    for row in range(3):
        torch.testing.assert_close(encoder(images[row : row + 1]).tokens[0], together[row], rtol=1e-9, atol=1e-9)


def test_positions_of_another_grid_are_resized():
    small, large = tiny("clip_vision_model"), tiny("clip_vision_model", 32)
    name = next(name for name, _ in small.named_parameters() if "position" in name)
    resized = large.resized(name, small.get_parameter(name))
    assert resized.shape == (17, 16)
    torch.testing.assert_close(resized[0], small.get_parameter(name)[0])
    assert large.resized("tower.embeddings.patch_embedding.weight", torch.zeros(1)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"^name_or_path: None and architecture=None: set exactly one"),
        (
            {"name_or_path": "a", "architecture": "vit"},
            r"^name_or_path: a and architecture=vit: set exactly one",
        ),
        ({"name_or_path": "a", "settings": TINY}, r"^settings: a pretrained model has its own"),
        ({"name_or_path": "/no/such/folder"}, r"^name_or_path: there is no folder '/no/such/folder'"),
        ({"architecture": "vitt"}, r"^architecture: transformers has no model type 'vitt'"),
        ({"architecture": "bert"}, r"^architecture: 'bert' is no vision Transformer"),
        ({"architecture": "resnet"}, r"^architecture: 'resnet' is no vision Transformer .* encoder=timm"),
        (
            {"architecture": "vit_mae", "settings": TINY},
            r"^architecture: a ViTMAEModel gives no tokens of image patches",
        ),
        (
            {"architecture": "vit", "settings": {"hiden_size": 8}},
            r"^settings\.hiden_size: vit has no such setting; did you mean 'hidden_size'\?",
        ),
        (
            {"architecture": "vit", "settings": {"image_size": 8}},
            r"^settings\.image_size: .* data\.image_size",
        ),
        ({"architecture": "vit", "settings": {"hidden_size": "a"}}, r"^settings: vit does not take them"),
        (
            {"architecture": "vit", "settings": TINY | {"num_attention_heads": 3}},
            r"^settings\.num_attention_heads: 3 does not divide hidden_size 16",
        ),
        (
            {"architecture": "vit", "settings": TINY | {"patch_size": 7}},
            r"^data\.image_size: 16 is not a multiple of 7, the patch size of this 'vit'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceVision(16, **arguments)
    assert "\n" not in str(caught.value)


def test_a_text_model_and_a_checkpoint_with_missing_weights_are_refused(tmp_path, saved):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**small, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"^name_or_path: 'bert' is no vision Transformer"):
        HuggingFaceVision(16, name_or_path=str(tmp_path / "bert"))
    _, folder = saved("vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"^name_or_path: .* has no weights for .*2"):
        HuggingFaceVision(16, name_or_path=folder)
