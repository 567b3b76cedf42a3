"""Passes over some of the patches: they see no others, whatever the architecture and its stem."""

import pytest
import torch
from torch import Tensor, nn

from mmlm.model.encoders.some_patches import only_visible
from mmlm.model.encoders.timm_any import TimmEncoder
from mmlm.model.encoders.timm_vit import TimmVit

SIZES = {"patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
SETTINGS = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
ENCODERS = {
    "class token": lambda: TimmVit(32, **SIZES),
    "kept class token and registers": lambda: TimmVit(32, **SIZES, registers=3, keep_prefix_tokens=True),
    "mean": lambda: TimmVit(32, **SIZES, class_token=False, pool="mean"),
    "convolutional stem": lambda: TimmVit(32, **SIZES, stem="convolution"),
    "before the last norm": lambda: TimmVit(32, **SIZES, final_norm=False),
    "norm before the blocks": lambda: TimmVit(32, "vit_base_patch32_clip_224", **SIZES),
    "registers without positions": lambda: TimmVit(32, "vit_small_patch14_reg4_dinov2", **SIZES),
    "distillation token": lambda: TimmVit(32, "deit_tiny_distilled_patch16_224", **SIZES),
    "attention pool": lambda: TimmVit(32, "vit_base_patch16_siglip_224", **SIZES),
    "convolutional network": lambda: TimmVit(64, "vit_tiny_r_s16_p8_224", width=16, depth=1, num_heads=2),
    "any ViT": lambda: TimmEncoder(32, "vit_tiny_patch16_224", SETTINGS, keep_prefix_tokens=True),
    "DINOv3, rotary positions": lambda: TimmEncoder(32, "vit_small_patch16_dinov3", SETTINGS),
    "EVA-02, rotary positions": lambda: TimmEncoder(32, "eva02_tiny_patch14_224", SETTINGS),
    "rotary positions of each head": lambda: TimmEncoder(32, "vit_small_patch16_rope_mixed_224", SETTINGS),
}


def make(name: str) -> TimmVit | TimmEncoder:
    torch.manual_seed(0)
    encoder = ENCODERS[name]().double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # layer scales of 1e-5 hide what attention does
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def pixels_for(encoder: TimmVit | TimmEncoder, count: int = 3) -> Tensor:
    size = encoder.grid[0] * encoder.patch_size[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def some_of(encoder: TimmVit | TimmEncoder, count: int = 3) -> Tensor:
    """int64[B, N / 2], others for each image."""
    generator, num_patches = torch.Generator().manual_seed(1), encoder.grid[0] * encoder.grid[1]
    order = torch.rand(count, num_patches, generator=generator).argsort(dim=1)
    return order[:, : num_patches // 2].sort(dim=1).values


@pytest.mark.parametrize("name", ENCODERS)
def test_all_patches_are_the_whole_pass(name):
    encoder = make(name)
    assert encoder.sees_some
    images, num_patches = pixels_for(encoder), encoder.grid[0] * encoder.grid[1]
    tokens = encoder.some_tokens(images, torch.arange(num_patches).expand(3, -1))
    whole = encoder(images).tokens[:, encoder.num_prefix_tokens :]
    torch.testing.assert_close(tokens, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_depend_on_the_pixels_of_kept_patches_only_and_on_all_of_these(name):
    encoder = make(name)
    images, kept = pixels_for(encoder), some_of(encoder)
    tokens = encoder.some_tokens(images, kept)
    assert tokens.shape == (3, kept.shape[1], encoder.width)
    hidden = only_visible(torch.ones(3, 1, *images.shape[2:]), kept, encoder.grid) == 0
    assert torch.equal(encoder.some_tokens(torch.where(hidden, 255 - images, images), kept), tokens)
    height, width = encoder.patch_size
    for number in range(kept.shape[1]):
        changed = images.clone()
        for image, place in enumerate(kept[:, number].tolist()):
            row, column = place // encoder.grid[1], place % encoder.grid[1]
            changed[image, :, row * height : (row + 1) * height, column * width : (column + 1) * width] += 100
        assert ((encoder.some_tokens(changed, kept) - tokens).abs().amax(dim=-1) > 1e-12).all()


@pytest.mark.parametrize("name", ["class token", "convolutional stem", "DINOv3, rotary positions"])
def test_the_pass_over_the_rest_is_not_touched(name):
    encoder = make(name)
    images = pixels_for(encoder)
    before = encoder(images).tokens
    encoder.some_tokens(images, some_of(encoder))
    assert torch.equal(encoder(images).tokens, before)


def test_one_patch_more_or_less_is_what_a_slow_pass_says():
    """A ViT without timm's forward: embed, add positions, take the kept rows, run the blocks."""
    encoder = make("kept class token and registers")
    vit, images, kept = encoder.vit, pixels_for(encoder), some_of(encoder)
    patches = vit.patch_embed(encoder.normalize(images).double())
    prefix = torch.cat([vit.cls_token, vit.reg_token], dim=1) + vit.pos_embed[:, :4]
    rows = []
    for image, places in enumerate(kept):
        positions = vit.pos_embed[0, 4:][places]
        x = torch.cat([prefix[0], patches[image, places] + positions])[None]
        for block in vit.blocks:
            x = x + block.attn(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        rows.append(vit.norm(x)[0, 4:])
    torch.testing.assert_close(encoder.some_tokens(images, kept), torch.stack(rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_gets_a_gradient(name):
    encoder = make(name)
    tokens = encoder.some_tokens(pixels_for(encoder), some_of(encoder))
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.count_nonzero()] == []


@pytest.mark.parametrize("name", ["class token", "convolutional stem", "any ViT"])
def test_no_images(name):
    encoder = make(name)
    tokens = encoder.some_tokens(pixels_for(encoder, 0), some_of(encoder, 0))
    assert tokens.shape == (0, 8, 16)
    assert tokens.requires_grad


def test_encoders_that_cannot():
    convnext = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 2, "output_stride": 8}
    assert not TimmEncoder(32, "convnext_atto", convnext).sees_some
    assert not TimmEncoder(32, "beit_base_patch16_224", SETTINGS).sees_some  # its attention has biases by position
    # A network whose last map, 3 x 3, does not tile 40 pixels.
    with torch.device("meta"):
        assert not TimmVit(40, "vit_base_r50_s16_224", width=16, depth=1, num_heads=2).sees_some


def test_hidden_pixels():
    kept = torch.tensor([[0, 3], [1, 2]])
    visible = only_visible(torch.ones(2, 1, 4, 4), kept, (2, 2))
    assert visible[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert visible[1, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_nothing_of_the_state_changes():
    """So that checkpoints of timm's models load as before."""
    encoder = TimmVit(32, **SIZES)
    assert isinstance(encoder.vit.patch_drop, nn.Module)
    assert not any("patch_drop" in key for key in encoder.state_dict())
