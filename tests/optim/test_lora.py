"""Low-rank adapters: nothing changes at first, only they train, and they can be merged away."""

import sys

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mmlm.core.errors import UserError
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.optim.freeze import FreezePlan
from mmlm.optim.lora import Lora, is_adapter, linear_layers, merge_adapters, plain_name
from mmlm.optim.optimizers import hidden_matrices, parameter_groups


class Wrapped(nn.Module):
    """A language model of GPT-2's kind (its layers keep their weights transposed), a linear layer and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        unset = dict.fromkeys(("bos_token_id", "eos_token_id"))
        config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, **unset)
        self.lm = GPT2LMHeadModel(config)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.lm(inputs_embeds=self.attention(x, x, x)[0] + x).logits


def make(plan: FreezePlan) -> tuple[Wrapped, torch.Tensor]:
    torch.manual_seed(0)
    model = Wrapped().eval()
    plan.add_adapters(model)
    return model, torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


def moved(model: nn.Module) -> None:
    """Gives every adapter's B (0 at the start) a value."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


BOTH = FreezePlan(lora=Lora(["first", "lm"], rank=2, alpha=4.0))


def test_which_layers_can_have_one():
    names = set(linear_layers(Wrapped()))
    # Not the head, which shares the token embedding, nor attention's output, whose weight is read.
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names == {"first", *(f"lm.transformer.h.0.{layer}" for layer in layers)}
    assert "head" not in linear_layers(TransformerDecoder(9, 8, 6, width=8, num_heads=2, tie_weights=False))


def test_the_function_is_unchanged_at_first():
    plain, x = make(FreezePlan())
    adapted, _ = make(BOTH)
    assert torch.equal(plain(x), adapted(x))
    moved(adapted)
    assert not torch.allclose(plain(x), adapted(x))


def test_adapters_train_and_what_they_stand_in_does_not():
    model, x = make(BOTH)
    assert all(p.requires_grad for p in model.parameters()), "adding them freezes nothing by itself"
    moved(model)
    for parameter in BOTH.frozen_parameters(model, 0):
        parameter.requires_grad_(False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if not name.startswith("attention.")} == {
        name for name, _ in model.named_parameters() if is_adapter(name)
    }
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum().item() > 0) is (name in trained), name


def test_adapters_are_their_formula():
    """``W x + b + alpha / rank * B A x`` in float64."""
    model, x = make(FreezePlan(lora=Lora(["first"], rank=2, alpha=3.0)))
    moved(model)
    layer = model.first.double()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = x.double()
    expected = x @ layer.base_layer.weight.T + layer.base_layer.bias + 1.5 * x @ a.T @ b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_merged_away_the_function_stays_and_the_names_are_plain():
    model, x = make(BOTH)
    moved(model)
    expected = model(x)
    merge_adapters(model)
    assert model.state_dict().keys() == Wrapped().state_dict().keys()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_every_adapter_of_our_parts_has_an_effect():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "bridge": AttentionalPooler(6, (2, 2), 8, num_heads=2, num_queries=3),
            "decoder": TransformerDecoder(11, 8, 6, width=8, num_heads=2),
        }
    )
    FreezePlan(lora=Lora(["bridge", "decoder"], rank=2)).add_adapters(model)
    memory = model["bridge"](torch.randn(2, 4, 6)).memory
    tokens = torch.tensor([[2, 5, 6, 1], [2, 7, 8, 1]])
    hidden = model["decoder"].hidden(tokens, torch.tensor([4, 4]), memory, torch.tensor([0, 1]))
    (hidden * torch.randn_like(hidden)).sum().backward()
    found = {name: p for name, p in model.named_parameters() if ".lora_B." in name}
    assert len(found) > 10
    assert [name for name, p in found.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_target_and_exceptions_choose_the_layers():
    model, _ = make(FreezePlan(lora=Lora(["lm"], rank=2, target=["*.c_attn", "*.c_fc"])))
    found = {name.split(".lora_")[0] for name, _ in model.named_parameters() if is_adapter(name)}
    assert found == {"lm.transformer.h.0.attn.c_attn", "lm.transformer.h.0.mlp.c_fc"}
    model, _ = make(FreezePlan(trainable=["*.mlp"], lora=Lora(["lm"], rank=2)))
    found = {name.split(".lora_")[0] for name, _ in model.named_parameters() if is_adapter(name)}
    assert found == {"lm.transformer.h.0.attn.c_attn", "lm.transformer.h.0.attn.c_proj"}


def test_names_are_those_from_before_the_adapters():
    plan = FreezePlan(frozen=["first.weight"], lora=Lora(["first"], rank=2), unfreeze={"first.bias": 4})
    model, _ = make(plan)
    assert plan.freezes("first.base_layer.weight", 9)
    assert [plan.freezes("first.base_layer.bias", step) for step in (3, 4)] == [True, False]
    assert not plan.freezes("first.lora_A.default.weight", 0)
    assert plain_name("first.base_layer.weight") == "first.weight"
    assert "first.base_layer.weight" in dict(model.named_parameters())


def test_on_the_meta_device():
    with torch.device("meta"):
        model = Wrapped()
        BOTH.add_adapters(model)
    real, _ = make(BOTH)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert all(p.is_meta for p in model.parameters())


def test_muon_leaves_the_factors_to_adamw():
    model, _ = make(BOTH)
    assert not any(is_adapter(name) for name in hidden_matrices(model))
    assert "first.base_layer.weight" in hidden_matrices(model)
    names = [name for group in parameter_groups(model, 0.1) for name in group.names]
    assert sum(is_adapter(name) for name in names) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": []}, r"^parts: parts and target must both name something"),
        ({"parts": ["a"], "rank": 0}, r"^rank: 0 must be at least 1"),
        ({"parts": ["a"], "alpha": 0.0}, r"^alpha: 0\.0 must be above 0"),
        ({"parts": ["a"], "dropout": 1.0}, r"^dropout: 1\.0 must lie in \[0, 1\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Lora(**settings)


def test_without_peft_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"freeze\.lora: needs the package peft \(.*\); pip install 'mmlm\[lora\]'"):
        make(BOTH)
