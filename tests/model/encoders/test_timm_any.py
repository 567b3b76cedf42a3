"""Any timm model as an encoder: tokens against timm's own features, the grid, options honoured or refused."""

import pytest
import timm
import torch
from timm.layers import LayerNorm

from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stream
from mmlm.core.views import StepKey
from mmlm.model.encoders.timm_any import TimmEncoder
from mmlm.model.encoders.timm_vit import TimmVit

VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 2, "output_stride": 8}
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "output_stride": 8}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
SMALL = {  # name: settings, width, prefix tokens, each for 32 pixels and 4 x 4 tokens
    "vit_tiny_patch16_224": (VIT, 16, 1),
    "deit_tiny_distilled_patch16_224": (VIT, 16, 2),
    "vit_base_patch16_siglip_224": (VIT, 16, 0),
    "vit_base_patch32_clip_224": (VIT, 16, 1),
    "vit_small_patch14_reg4_dinov2": (VIT, 16, 5),
    "vit_small_patch16_dinov3": (VIT, 16, 5),
    "eva02_tiny_patch14_224": (VIT, 16, 1),
    "beit_base_patch16_224": (VIT, 16, 1),
    "swin_tiny_patch4_window7_224": (SWIN, 16, 0),
    "convnext_atto": (CONVNEXT, 16, 0),
    "resnet18": (RESNET, 24, 0),
    "test_efficientnet": ({"output_stride": 8}, 256, 0),
}


def pixels(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def small(name: str, image_size: int = 32, **arguments: object) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(image_size, name, SMALL[name][0], **arguments).eval()


@pytest.mark.parametrize("name", SMALL)
def test_every_family_gives_a_grid_of_tokens_and_every_parameter_a_gradient(name):
    _, width, _ = SMALL[name]
    encoder = small(name)
    assert (encoder.width, encoder.grid, encoder.num_prefix_tokens, encoder.pooled_width) == (width, (4, 4), 0, None)
    out = encoder(pixels())
    assert (out.tokens.shape, out.tokens.dtype, out.pooled) == ((2, 16, width), torch.float32, None)
    (out.tokens * torch.rand(2, 16, width)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    with torch.device("meta"):
        planned = small(name, load_weights=False)
    assert (planned.width, planned.grid) == (width, (4, 4))
    assert {n: p.shape for n, p in planned.named_parameters()} == {n: p.shape for n, p in encoder.named_parameters()}


@pytest.mark.parametrize("name", SMALL)
def test_an_image_s_tokens_do_not_depend_on_the_rest_of_the_batch(name):
    encoder, images = small(name).double(), pixels(3)
    together = encoder(images).tokens
    for row in range(3):
        torch.testing.assert_close(encoder(images[row : row + 1]).tokens[0], together[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_prefix_tokens_stay_in_front_and_are_pooled_if_there_are_any(name):
    _, width, prefix = SMALL[name]
    images, plain = pixels(), small(name)(pixels()).tokens
    if prefix == 0:
        with pytest.raises(UserError, match=r"^pool: 'cls' needs a class token"):
            small(name, pool="cls")
        with pytest.raises(UserError, match=r"^keep_prefix_tokens: "):
            small(name, keep_prefix_tokens=True)
    else:
        encoder = small(name, pool="cls", keep_prefix_tokens=True)
        out = encoder(images)
        assert (encoder.num_prefix_tokens, encoder.pooled_width) == (prefix, width)
        assert torch.equal(out.tokens[:, prefix:], plain)
        assert torch.equal(out.pooled, out.tokens[:, 0])
    mean = small(name, pool="mean")(images)
    torch.testing.assert_close(mean.pooled, plain.mean(dim=1))


def test_a_plain_vit_is_that_of_the_other_encoder():
    sizes = {"patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
    vit, encoder = TimmVit(32, "vit_tiny_patch16_224", **sizes).eval(), small("vit_tiny_patch16_224")
    encoder.backbone.load_state_dict(vit.vit.state_dict())
    assert torch.equal(encoder(pixels()).tokens, vit(pixels()).tokens)


@pytest.mark.parametrize(("name", "layout"), [("resnet18", "NCHW"), ("swin_tiny_patch4_window7_224", "NHWC")])
def test_feature_maps_are_read_row_by_row(name, layout):
    encoder = small(name)
    images = encoder.normalize(pixels())
    images = images.contiguous(memory_format=torch.channels_last) if name == "resnet18" else images
    features = encoder.backbone.forward_features(images)
    tokens = encoder(pixels()).tokens
    for row in range(4):
        for column in range(4):
            cell = features[:, :, row, column] if layout == "NCHW" else features[:, row, column]
            assert torch.equal(tokens[:, 4 * row + column], cell)


def test_weights_are_those_that_timm_would_start_with():
    """The trial runs on the meta device leave the random numbers alone."""
    encoder = small("resnet18")
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", num_classes=0, **RESNET)
    state = encoder.backbone.state_dict()
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in reference.state_dict().items())


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "convnext_atto"])
def test_a_norm_behind_the_pooling_is_applied_to_each_token(name):
    out = small(name)(pixels()).tokens
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 16), rtol=0, atol=1e-4)
    # The norm of the initial scale 1; ConvNeXt's epsilon weighs on small features.
    assert (out.var(-1, unbiased=False) > 0.5).all()


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("vit_tiny_patch16_224", "norm"),
        ("eva02_tiny_patch14_224", "fc_norm"),
        ("swin_tiny_patch4_window7_224", "norm"),
        ("convnext_atto", "head.norm"),
    ],
)
def test_tokens_before_the_last_norm(name, norm):
    normed, bare = small(name).double(), small(name, final_norm=False).double()
    assert bare.backbone.load_state_dict(normed.backbone.state_dict(), strict=False).missing_keys == []
    raw, module = bare(pixels()).tokens, normed.backbone.get_submodule(norm)
    assert not torch.allclose(raw.mean(-1), torch.zeros(2, 16, dtype=torch.float64), atol=1e-3)
    again = torch.nn.functional.layer_norm(raw, raw.shape[-1:], module.weight, module.bias, module.eps)
    torch.testing.assert_close(again, normed(pixels()).tokens, rtol=1e-9, atol=1e-9)
    raw.square().sum().backward()
    assert [name for name, p in bare.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_registers_take_part(name):
    encoder = small(name, registers=3, keep_prefix_tokens=True)
    assert encoder.num_prefix_tokens == 4
    out = encoder(pixels()).tokens
    assert out.shape == (2, 20, 16)
    out.square().sum().backward()
    assert encoder.backbone.reg_token.shape == (1, 3, 16)
    assert encoder.backbone.reg_token.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_patch_dropout_leaves_the_patches_that_it_is_given(name):
    encoder = small(name, patch_dropout=0.5, keep_prefix_tokens=True).double().train()
    assert (encoder.drops_patches, encoder.num_kept) == (True, 8)
    prefix = SMALL[name][2]
    kept = StepKey().chosen(torch.arange(2), 16, encoder.num_kept, stream("mmlm.model.patch_dropout"))
    assert encoder(pixels()).tokens.shape[1] == prefix + 16
    left = encoder(pixels(), kept).tokens
    assert left.shape[1] == prefix + 8
    # Patch embeddings do not overlap here: hiding the pixels that are left out changes nothing.
    torch.testing.assert_close(left[:, prefix:], encoder.some_tokens(pixels(), kept))
    assert encoder(pixels()).tokens.shape[1] == prefix + 16


def test_stochastic_depth_grows_with_the_layers():
    encoder = TimmEncoder(32, "vit_tiny_patch16_224", VIT | {"depth": 3}, drop_path=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.backbone.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])


def test_positions_of_another_grid_are_resized():
    coarse, fine = small("vit_tiny_patch16_224", 16), small("vit_tiny_patch16_224", 64)
    table = coarse.backbone.pos_embed
    resized = fine.resized("backbone.pos_embed", table)
    assert resized.shape == (1, 65, 16)
    assert torch.equal(resized[:, 0], table[:, 0])
    assert fine.resized("backbone.cls_token", table) is None
    assert small("resnet18").resized("backbone.conv1.weight", table) is None


def test_what_only_serves_the_head_is_left_out():
    names = [name for name, _ in TimmEncoder(32, "mobilenetv3_small_050").named_parameters()]
    assert not any("conv_head" in name for name in names)
    assert not any("attn_pool" in name for name, _ in small("vit_base_patch16_siglip_224").named_parameters())
    assert isinstance(small("convnext_atto").backbone.head.norm, LayerNorm | torch.nn.LayerNorm)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"patch_dropout": 0.5}, r"^patch_dropout: timm's 'resnet18' is a ResNet, which has none"),
        ("convnext_atto", {"registers": 2}, r"^registers: timm's 'convnext_atto' is a ConvNeXt, which has"),
        ("swin_tiny_patch4_window7_224", {"patch_dropout": 0.1}, r"^patch_dropout: .* SwinTransformer"),
        ("vgg11", {"drop_path": 0.1, "settings": None}, r"^drop_path: timm's 'vgg11' is a VGG"),
        ("resnet18", {"final_norm": False}, r"^final_norm: timm's 'resnet18' has no last norm"),
        ("deit_tiny_distilled_patch16_224", {"registers": 2}, r"^registers: 2 do not go with a distillation"),
        ("vit_tiny_patch16_224", {"registers": -1}, r"^registers: -1 must be at least 0"),
        ("vit_tiny_patch16_224", {"drop_path": 1.0}, r"^drop_path: 1\.0 must be at least 0 and below 1"),
        ("vit_tiny_patch16_224", {"patch_dropout": -0.1}, r"^patch_dropout: -0\.1 must be at least 0"),
        ("vit_tiny_patch16_224", {"image_size": 36}, r"^data\.image_size: 36 is not a multiple of 8, the pixels that"),
        ("resnet18", {"image_size": 36}, r"^data\.image_size: 36 is not a multiple of 8"),
        ("swin_tiny_patch4_window7_224", {"image_size": 36}, r"^(encoder\.name|data\.image_size): .*36"),
        ("resnet18", {"name": "resnet1"}, r"^name: timm has no model 'resnet1'; it has for example"),
        ("resnet18", {"settings": {"layrs": [1]}}, r"^settings: timm's 'resnet18' does not take .*layrs"),
        ("resnet18", {"settings": {"img_size": 3}}, r"^settings\.img_size: .* set data\.image_size"),
        ("resnet18", {"settings": {"num_classes": 3}}, r"^settings\.num_classes: is not free"),
        ("resnet18", {"pretrained": True}, r"^pretrained: pretrained weights fix settings and registers"),
        ("resnet18", {"pretrained": True, "weights": "a.pth"}, r"^weights: 'a\.pth' and pretrained"),
        ("pit_ti_224", {"image_size": 224, "settings": None}, r"^name: timm's 'pit_ti_224' gives features of"),
        ("coat_tiny", {"image_size": 224, "settings": None}, r"^name: timm's 'coat_tiny' gives no features"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, arguments, message):
    settings = {"image_size": 32, "name": name, "settings": SMALL.get(name, (None,))[0]} | arguments
    with pytest.raises(UserError, match=message) as caught:
        TimmEncoder(**settings)
    assert "\n" not in str(caught.value)


def test_an_attention_pool_is_the_architecture_s_own():
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = TimmEncoder(32, "vit_base_patch16_siglip_224", small, pool="own").eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = encoder(images)
    expected = encoder.backbone(encoder.normalize(images))
    torch.testing.assert_close(found.pooled, expected)
    assert (encoder.pooled_width, found.tokens.shape) == (16, (2, 4, 16))
    found.pooled.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(UserError, match=r"pool: timm's 'resnet10t' has no attention pool of its own; use cls, mean"):
        TimmEncoder(64, "resnet10t", pool="own")
    with pytest.raises(UserError, match="head: 8 is a width of at least 1, and needs pool=own; use null"):
        TimmEncoder(32, "vit_base_patch16_siglip_224", small, pool="mean", head=8)
