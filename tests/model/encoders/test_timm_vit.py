"""Image encoders: shapes, normalisation against timm's own, both stems, and what is refused."""

import pytest
import timm
import torch
from torch import nn

from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stream
from mmlm.core.views import CAPTION, EMBED, KEPT_BY_DROPOUT, StepKey
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.bridges.projection import MlpProjection
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import ConvolutionalStem, TimmVit
from mmlm.model.model import ImageTextModel

SMALL = {"patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}


def small(image_size: int = 16, **changes: object) -> TimmVit:
    torch.manual_seed(0)
    return TimmVit(image_size, **(SMALL | changes)).eval()


def pixels(count: int = 2, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_patch_tokens_come_out_without_class_token(class_token, stem):
    encoder = small(32, class_token=class_token, stem=stem)
    assert (encoder.width, encoder.grid) == (16, (4, 4))
    tokens = encoder(pixels(3, 32)).tokens
    assert tokens.shape == (3, 16, 16)
    assert tokens.dtype == torch.float32
    whole = encoder.vit.forward_features(encoder.normalize(pixels(3, 32)))
    assert whole.shape[1] == 16 + class_token


def test_patch_tokens_stand_row_by_row():
    """Without attention between tokens (depth 0), pixels of one patch move one token: the one at its row and column."""
    encoder = small(32, depth=0, class_token=False)
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    spot = black.clone()
    spot[:, :, 8:16, 24:32] = 255
    changed = (encoder(spot).tokens - encoder(black).tokens).abs().sum(-1)[0] > 0
    assert changed.nonzero().squeeze(1).tolist() == [1 * 4 + 3]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch32_clip_224"])
def test_bytes_are_normalised_as_timm_normalises_floats(name):
    torch.manual_seed(0)
    encoder = TimmVit(16, name=name, **SMALL).eval()
    settings = timm.data.resolve_model_data_config(encoder.vit)
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    images = pixels()
    expected = encoder.vit.forward_features((images.float() / 255 - mean) / std)[:, 1:]
    torch.testing.assert_close(encoder(images).tokens, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_are_those_after_the_last_norm_and_every_parameter_gets_a_gradient(class_token):
    encoder = small(class_token=class_token)
    tokens = encoder(pixels()).tokens
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(2, 4), rtol=0, atol=1e-2)
    tokens.square().sum(dim=-1).mul(torch.rand(2, 4)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_parts_that_only_serve_a_classifier_are_left_out():
    encoder = TimmVit(16, name="vit_base_patch16_siglip_224", **SMALL)
    assert not any("attn_pool" in name or "head" in name for name, _ in encoder.named_parameters())
    encoder(pixels()).tokens.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_register_tokens_take_part_and_are_left_out():
    encoder = TimmVit(16, name="vit_small_patch14_reg4_dinov2", **SMALL).double().eval()
    images = pixels()
    before = encoder(images).tokens
    assert before.shape == (2, 4, 16)
    with torch.no_grad():
        encoder.vit.reg_token.add_(torch.randn(encoder.vit.reg_token.shape))
    # The architecture scales its first updates by 1e-5.
    assert (encoder(images).tokens - before).abs().max() > 1e-8


def test_tokens_before_the_last_norm_with_the_class_token_in_front():
    """What CLIP's vision tower hands to CoCa's pooler."""
    torch.manual_seed(0)
    encoder = TimmVit(16, name="vit_base_patch32_clip_224", **SMALL, keep_prefix_tokens=True, final_norm=False).double()
    vit, images = encoder.vit, pixels()
    x = vit.patch_embed(encoder.normalize(images).double())
    x = torch.cat([vit.cls_token.expand(2, -1, -1), x], dim=1) + vit.pos_embed
    x = vit.norm_pre(x)
    for block in vit.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    assert encoder.num_prefix_tokens == 1
    out = encoder.double()(images)
    torch.testing.assert_close(out.tokens, x, rtol=1e-10, atol=1e-10)
    out.tokens.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("class_token", [True, False])
def test_the_mean_is_that_of_the_normalised_patches(class_token):
    encoder = small(class_token=class_token, pool="mean")
    out = encoder(pixels())
    assert encoder.pooled_width == 16
    torch.testing.assert_close(out.pooled, out.tokens.mean(1))
    torch.testing.assert_close(out.tokens.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)


def test_the_class_token_is_pooled_after_the_last_norm_as_timm_pools_it():
    encoder = small(pool="cls")
    expected = encoder.vit.pool(encoder.vit.forward_features(encoder.normalize(pixels())), "token")
    torch.testing.assert_close(encoder(pixels()).pooled, expected)
    with pytest.raises(UserError, match=r"^pool: 'cls' needs a class token"):
        small(pool="cls", class_token=False)


@pytest.mark.parametrize("class_token", [True, False])
def test_added_registers_take_part_and_stay_if_asked(class_token):
    encoder = small(class_token=class_token, registers=3, keep_prefix_tokens=True)
    assert encoder.num_prefix_tokens == 3 + class_token
    out = encoder(pixels()).tokens
    assert out.shape == (2, 7 + class_token, 16)
    out.square().sum().backward()
    assert encoder.vit.reg_token.grad.abs().sum() > 0


def test_patch_dropout_leaves_the_patches_that_it_is_given():
    """Without attention (depth 0) each token is its patch."""
    encoder = small(32, depth=0, class_token=False, patch_dropout=0.5)
    assert (encoder.drops_patches, encoder.num_kept) == (True, 8)
    kept = StepKey().chosen(torch.arange(3), 16, encoder.num_kept, stream("mmlm.model.patch_dropout"))
    whole, left = encoder(pixels(3, 32)).tokens, encoder.train()(pixels(3, 32), kept).tokens
    torch.testing.assert_close(left, torch.stack([one[places] for one, places in zip(whole, kept, strict=True)]))
    assert encoder(pixels(3, 32)).tokens.shape == (3, 16, 16)


def test_patch_dropout_is_drawn_for_each_image_and_only_in_training(make_batch):
    encoder = small(32, patch_dropout=0.5)
    pooler = AttentionalPooler(16, encoder.grid, width=8, num_heads=2, num_queries=2)
    model = ImageTextModel(encoder, pooler, TransformerDecoder(13, 8, max_tokens=8, width=8, num_heads=2), 6)
    batch = make_batch(image_size=32)
    drawn = model.train().draw(batch, StepKey(step=3))[KEPT_BY_DROPOUT]
    assert drawn.shape == (3, 8)
    assert (drawn.diff(dim=1) > 0).all()
    assert not torch.equal(drawn[0], drawn[1])
    alone = [model.draw(part, StepKey(step=3))[KEPT_BY_DROPOUT] for part in batch.split(1)]
    assert torch.equal(torch.cat(alone), drawn)
    assert not torch.equal(model.draw(batch, StepKey(step=4))[KEPT_BY_DROPOUT], drawn)
    encoder.eval()
    assert model.draw(batch, StepKey(step=3)) == {}
    encoder.drops_patches = False
    assert model.train().draw(batch, StepKey(step=3)) == {}


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
@pytest.mark.parametrize("bridge", ["tokens", "mlp"])
def test_decoders_take_a_memory_that_patch_dropout_shortens(bridge, fusion, make_batch):
    encoder = small(32, patch_dropout=0.5, registers=1, keep_prefix_tokens=True).train()
    sizes = {"patch_width": 16, "grid": encoder.grid, "width": 8, "num_prefix_tokens": encoder.num_prefix_tokens}
    part = MlpProjection(**sizes) if bridge == "mlp" else AttentionalPooler(**sizes, num_heads=2, num_queries=None)
    decoder = TransformerDecoder(13, part.memory_width, max_tokens=8, width=8, num_heads=2, fusion=fusion)
    model, batch = ImageTextModel(encoder, part, decoder, embedding_width=6), make_batch(image_size=32)
    assert part.num_memory == 2 + 16
    drawn = model.draw(batch, StepKey())
    assert part(encoder(batch.images, drawn[KEPT_BY_DROPOUT]).tokens).memory.shape[1] == 2 + 8
    out = model(batch, {EMBED, CAPTION}, drawn)
    assert out.memory.shape[1] == 2 + 8
    (out.hidden[CAPTION].square().sum() + (out.image_embedding * torch.rand(3, 6)).sum()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert model.eval().encode_image(batch.images).memory.shape[1] == part.num_memory


@pytest.mark.parametrize(("patch_size", "layers"), [(2, 1), (4, 2), (8, 3), (16, 4)])
def test_convolutional_stem_halves_the_image_log2_times(patch_size, layers):
    stem = ConvolutionalStem(32, patch_size, embed_dim=48)
    strides = [m.stride for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(2, 2)] * layers + [(1, 1)]
    grid = 32 // patch_size
    assert stem.grid_size == (grid, grid)
    assert stem(torch.randn(2, 3, 32, 32)).shape == (2, stem.num_patches, 48) == (2, grid**2, 48)


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_an_image_s_tokens_do_not_depend_on_the_rest_of_the_batch(stem):
    encoder = small(stem=stem).double().train()
    images = pixels(4)
    together = encoder(images).tokens
    for row in range(4):
        torch.testing.assert_close(encoder(images[row : row + 1]).tokens[0], together[row], rtol=1e-10, atol=1e-10)


def test_the_stems_differ_in_kind_and_agree_in_shape():
    patch, convolution = small(stem="patch"), small(stem="convolution")
    assert isinstance(patch.vit.patch_embed.proj, nn.Conv2d)
    assert patch.vit.patch_embed.proj.kernel_size == (8, 8)
    assert isinstance(convolution.vit.patch_embed, ConvolutionalStem)
    assert patch(pixels()).tokens.shape == convolution(pixels()).tokens.shape
    assert not torch.allclose(patch(pixels()).tokens, convolution(pixels()).tokens)


def test_the_named_architecture_s_own_sizes_are_kept():
    encoder = TimmVit(32, name="test_vit")
    reference = timm.create_model("test_vit", img_size=32, num_classes=0)
    assert encoder.width == reference.embed_dim
    assert len(encoder.vit.blocks) == len(reference.blocks)
    assert encoder.vit.patch_embed.patch_size == reference.patch_embed.patch_size
    encoder.vit.load_state_dict(reference.state_dict())


def test_a_batch_without_images_gives_no_tokens():
    for stem in ("patch", "convolution"):
        assert small(stem=stem)(pixels(0)).tokens.shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_tiny_patch17"}, r"^name: timm has no model 'vit_tiny_patch17'; .*vit_"),
        ({"name": "nonsense"}, r"^name: timm has no model 'nonsense'; .*vit_tiny_patch16_224"),
        ({"name": "resnet18"}, r"^name: .*resnet18"),
        ({"name": "swin_tiny_patch4_window7_224", "image_size": 224, "depth": None}, r"^name: .*swin_tiny"),
        ({"patch_size": 7}, r"^patch_size: image size 16 is not a multiple of patch size 7"),
        ({"patch_size": 0}, r"^patch_size: image size 16 is not a multiple of patch size 0"),
        ({"patch_size": None, "image_size": 40}, r"^patch_size: image size 40 is not .* patch size 16"),
        ({"image_size": 12, "patch_size": 6, "stem": "convolution"}, r"^patch_size: 6 .* power of two"),
        ({"patch_size": 1, "stem": "convolution"}, r"^patch_size: 1 .* power of two"),
        ({"stem": "conv"}, r"^stem: 'conv' is not one of patch, convolution"),
        ({"num_heads": 3}, r"^name: .* does not take width=16, depth=2, num_heads=3"),
        ({"pretrained": True}, r"^pretrained: pretrained weights fix width"),
        ({"registers": -2}, r"^registers: -2 must be at least 0"),
        ({"patch_dropout": 1.0}, r"^patch_dropout: 1\.0 must be at least 0 and below 1"),
        (
            {"pretrained": True, "width": None, "depth": None, "num_heads": None, "class_token": False},
            r"^pretrained: pretrained weights fix width",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, message):
    settings = {"image_size": 16, "name": "vit_tiny_patch16_224"} | SMALL | arguments
    with pytest.raises(UserError, match=message) as caught:
        TimmVit(**settings)
    assert "\n" not in str(caught.value)
