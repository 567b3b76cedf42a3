"""Weights of timm encoders: local files, the hub's, positions at another grid, and files that do not fit."""

import pickle

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from mmlm.core.errors import UserError
from mmlm.model.encoders.timm_any import TimmEncoder
from mmlm.model.encoders.timm_vit import TimmVit

VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
OURS = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
NAME = "vit_base_patch16_siglip_224"


def pixels(size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)


def reference(name: str = "vit_tiny_patch16_224", num_classes: int = 7, **settings: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=num_classes, **({"img_size": 16} | VIT | settings)).eval()


def write(model: torch.nn.Module, path) -> str:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return str(path)


def encoders(file: str, image_size: int = 16, name: str = "vit_tiny_patch16_224", **arguments: object):
    return (
        TimmVit(image_size, name, weights=file, **OURS, **arguments).eval(),
        TimmEncoder(image_size, name, VIT, weights=file, **arguments).eval(),
    )


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth", "a.bin"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", NAME])
def test_a_local_file_is_loaded_without_its_head(tmp_path, name, file):
    model = reference(name)
    for encoder in encoders(write(model, tmp_path / file), name=name):
        with torch.no_grad():
            expected = model.forward_features(encoder.normalize(pixels()))[:, model.num_prefix_tokens :]
        torch.testing.assert_close(encoder(pixels()).tokens, expected)


def siglip_file(model: torch.nn.Module, layout: str, path) -> str:
    """A SigLIP tower as timm saves it, or inside of the model of images and texts that open_clip saves."""
    state = model.state_dict()
    if layout == "open_clip":
        text = {"text.token_embedding.weight": torch.zeros(9, 16), "logit_scale": torch.ones(1)}
        state = {f"visual.trunk.{name}": tensor for name, tensor in state.items()} | text
    save_file(state, path)
    return str(path)


@pytest.mark.parametrize("layout", ["timm", "open_clip"])
@pytest.mark.parametrize("name", [NAME, "vit_base_patch16_siglip_gap_224"])
def test_a_siglip_tower_is_loaded_without_its_attention_pool(tmp_path, name, layout):
    """arXiv:2303.15343: no class token, and an attention pool as the head (in ``gap``, the mean)."""
    model = reference(name, num_classes=0)
    pool = {key for key in model.state_dict() if key.startswith("attn_pool.")}
    assert bool(pool) == (name == NAME)
    file = siglip_file(model, layout, tmp_path / "siglip.safetensors")
    for encoder in encoders(file, name=name):
        assert not [key for key in encoder.state_dict() if "attn_pool" in key]
        assert encoder.num_prefix_tokens == 0
        with torch.no_grad():
            expected = model.fc_norm(model.forward_features(encoder.normalize(pixels())))
        torch.testing.assert_close(encoder(pixels()).tokens, expected, rtol=0, atol=0)


def test_a_file_of_a_package_is_loaded(package):
    write(reference(), package / "a.safetensors")
    expected, found = (
        encoders(file) for file in (str(package / "a.safetensors"), "package:some_weights/a.safetensors")
    )
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one(pixels()).tokens, other(pixels()).tokens)
    with pytest.raises(UserError, match=r"^weights: the package some_weights holds no 'b.safetensors'"):
        encoders("package:some_weights/b.safetensors")


def test_an_encoder_s_own_file_is_loaded_whatever_it_gives(tmp_path):
    (vit, _) = encoders(write(reference(NAME), tmp_path / "a.pth"), name=NAME)
    file = write(vit.vit, tmp_path / "b.safetensors")
    for encoder in encoders(file, name=NAME, final_norm=False):
        raw = encoder(pixels()).tokens
        torch.testing.assert_close(torch.nn.functional.layer_norm(raw, (16,), eps=1e-6), vit(pixels()).tokens)


def test_positions_of_a_file_are_resized(tmp_path):
    model = reference()
    file = write(model, tmp_path / "a.safetensors")
    expected = resample_abs_pos_embed(model.pos_embed, [4, 4], num_prefix_tokens=1)
    vit, encoder = encoders(file, image_size=32)
    torch.testing.assert_close(vit.vit.pos_embed, expected)
    torch.testing.assert_close(encoder.backbone.pos_embed, expected)


def test_a_feature_map_model_s_file_with_its_batch_norms(tmp_path):
    settings = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}
    model = timm.create_model("resnet18", num_classes=7, **settings).eval()
    model.bn1.running_mean.add_(0.5)
    encoder = TimmEncoder(32, "resnet18", settings, weights=write(model, tmp_path / "a.pth")).eval()
    expected = model.forward_features(encoder.normalize(pixels(32))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(pixels(32)).tokens, expected)


def test_without_weights_no_file_is_read():
    for encoder in encoders("/no/such/file.safetensors", load_weights=False):
        assert encoder(pixels()).tokens.shape == (2, 4, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"lacks norm\.weight; build the encoder as it was"),
        (lambda s: s.update(extra=torch.zeros(1)), r"has unexpected extra; build"),
        (lambda s: s.update({"norm.bias": torch.zeros(3)}), r"has another shape of norm\.bias; build"),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith("blocks.1.")],
            r"lacks blocks\.1\.attn\.proj\.bias, .* and \d+ more; build",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path, change, message):
    state = dict(reference().state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    for build in (
        lambda file: TimmVit(16, weights=file, **OURS),
        lambda file: TimmEncoder(16, settings=VIT, weights=file),
    ):
        with pytest.raises(UserError, match=rf"^weights: '.*a\.pth' {message}") as caught:
            build(str(tmp_path / "a.pth"))
        assert "\n" not in str(caught.value)


class Code:
    def __reduce__(self):
        return (print, ("code in a file of weights was run",))


def test_files_that_are_no_weights_are_refused(tmp_path, capsys):
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    torch.save({"a": Code()}, tmp_path / "zipped.bin")
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("code.pth", "zipped.bin", "cut.safetensors", "list.pth", "none.pth"):
        with pytest.raises(UserError, match=rf"^weights: .*{name}") as caught:
            TimmVit(16, weights=str(tmp_path / name), **OURS)
        assert "\n" not in str(caught.value)
    assert "code in a file" not in capsys.readouterr().out


@pytest.fixture
def hub(monkeypatch):
    """timm's download, answered with the weights of a model for 160-pixel images."""
    model = timm.create_model("test_vit").eval()

    def load(*arguments: object, **named: object) -> dict[str, torch.Tensor]:
        return dict(model.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    return model


@pytest.mark.parametrize("kind", [TimmVit, TimmEncoder])
def test_pretrained_weights_come_with_resized_positions(hub, kind):
    encoder = kind(160, "test_vit", pretrained=True).eval()
    expected = hub.forward_features(encoder.normalize(pixels(160)))[:, 1:]
    torch.testing.assert_close(encoder(pixels(160)).tokens, expected)
    small = kind(32, "test_vit", pretrained=True)
    backbone = small.vit if kind is TimmVit else small.backbone
    torch.testing.assert_close(backbone.pos_embed, resample_abs_pos_embed(hub.pos_embed, [2, 2], num_prefix_tokens=1))


@pytest.mark.parametrize("kind", [TimmVit, TimmEncoder])
def test_pretrained_weights_are_not_fetched_for_the_architecture_alone(monkeypatch, kind):
    def refuse(*arguments: object, **named: object) -> None:
        raise LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    assert kind(32, "test_vit", pretrained=True, load_weights=False).grid == (2, 2)
    with pytest.raises(UserError, match=r"^pretrained: the weights of timm's 'test_vit' .* \(no network\)"):
        kind(32, "test_vit", pretrained=True)
