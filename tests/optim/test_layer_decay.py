"""Depths of parameters, and the learning rates that follow from them."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mmlm.core.errors import UserError
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.optim.freeze import FreezePlan
from mmlm.optim.layer_decay import layer_depths, layer_scales
from mmlm.optim.optimizers import AdamW, Muon, set_learning_rate


def depths_of(part: nn.Module) -> dict[str, int]:
    return layer_depths(part)[0]


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_a_vit(stem):
    encoder = TimmVit(16, width=16, depth=3, num_heads=2, patch_size=8, stem=stem)
    depths, count = layer_depths(encoder)
    assert count == 3
    assert depths.keys() == dict(encoder.named_parameters()).keys()
    for name, depth in depths.items():
        block = name.startswith("vit.blocks.")
        expected = int(name.split(".")[2]) + 1 if block else 4 if "norm." in name and "embed" not in name else 0
        assert depth == expected, name


def test_our_decoder_counts_its_layers_through():
    depths = depths_of(TransformerDecoder(9, 8, 6, width=8, num_heads=2, unimodal_layers=2, multimodal_layers=2))
    assert depths["token_embedding.weight"] == depths["position_embedding"] == 0
    assert depths["unimodal_layers.1.feed_forward.0.weight"] == 2
    assert depths["multimodal_layers.0.self_norm.weight"] == 3
    assert depths["norm.weight"] == 5


def test_a_hugging_face_language_model():
    unset = dict.fromkeys(("bos_token_id", "eos_token_id"))
    depths = depths_of(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, **unset)))
    assert depths["transformer.wte.weight"] == depths["transformer.wpe.weight"] == 0
    assert depths["transformer.h.1.mlp.c_fc.weight"] == 2
    assert depths["transformer.ln_f.weight"] == 3


def test_the_rates_of_beit():
    encoder = TimmVit(16, width=16, depth=3, num_heads=2, patch_size=8)
    scales = layer_scales(encoder, "encoder", 0.5)
    assert scales["vit.pos_embed"] == scales["vit.cls_token"] == 0.5**4
    assert scales["vit.blocks.0.norm1.weight"] == 0.5**3
    assert scales["vit.blocks.2.norm1.weight"] == 0.5
    assert {scales[name] for name in scales if name.startswith(("vit.norm.", "vit.fc_norm."))} == {1.0}


def test_a_part_without_layers():
    with pytest.raises(UserError, match=r"freeze\.layer_decay\.bridge: 'bridge' is no stack of layers"):
        layer_scales(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "bridge", 0.5)


@pytest.mark.parametrize("optim", [AdamW(lr=0.1), Muon(lr=0.1)])
def test_the_rates_reach_the_optimizer(optim):
    model = nn.ModuleDict({"encoder": TimmVit(16, width=16, depth=2, num_heads=2, patch_size=8)})
    model["head"] = nn.Linear(16, 3)
    scales = FreezePlan(layer_decay={"encoder": 0.5}).learning_rate_scales(model)
    optimizer = optim(model, scales)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == pytest.approx({name: 0.1 * scales.get(name, 1.0) for name in names.values()})
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05), "the highest rate is told"
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(0.05 * 0.5**3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # Adam's first step is the learning rate, whatever the gradient.
    moved = {name: (before[name] - p.detach()).abs().max().item() for name, p in model.named_parameters()}
    assert moved["encoder.vit.cls_token"] == pytest.approx(0.05 * 0.5**3, rel=1e-4)
    assert moved["encoder.vit.blocks.1.norm1.bias"] == pytest.approx(0.05 * 0.5, rel=1e-4)
    assert moved["head.bias"] == pytest.approx(0.05, rel=1e-4)
