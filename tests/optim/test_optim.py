"""Groups, schedules, AdamW against torch.optim's own and by hand, and the moving average against its recurrence."""

import math

import pytest
import torch
from torch import nn

from mmlm.core.errors import UserError
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.objectives.contrastive import InfoNCE
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.optim.optimizers import AdamW, Muon, hidden_matrices, parameter_groups, set_learning_rate
from mmlm.optim.schedules import Constant, Cosine, WarmupStableDecay


def everything(tie_weights: bool = True) -> nn.ModuleDict:
    decoder = TransformerDecoder(11, 8, max_tokens=6, width=8, num_heads=2, tie_weights=tie_weights)
    bridge = AttentionalPooler(patch_width=6, grid=(2, 2), width=8, num_heads=2, num_queries=3)
    return nn.ModuleDict({"decoder": decoder, "bridge": bridge, "contrastive": InfoNCE()})


def group_names(module: nn.Module) -> tuple[set[str], set[str]]:
    decayed, plain = parameter_groups(module, weight_decay=0.1)
    assert (decayed.weight_decay, plain.weight_decay) == (0.1, 0.0)
    return set(decayed.names), set(plain.names)


def test_decay_spares_norms_biases_temperature_queries_and_positions():
    decayed, plain = group_names(everything())
    assert {"contrastive.logit_scale", "bridge.queries", "decoder.position_embedding"} <= plain
    assert {"decoder.norm.weight", "bridge.patch_norm.weight", "bridge.attention.query.bias"} <= plain
    assert not any("norm" in name or name.endswith("bias") for name in decayed)
    assert {"decoder.token_embedding.weight", "bridge.attention.key_value.weight"} <= decayed
    assert all(name.endswith("weight") for name in decayed)


def test_decay_spares_class_and_register_tokens_and_positions_of_a_vit():
    vit = nn.Module()
    for name in ("cls_token", "reg_token", "pos_embed"):
        vit.register_parameter(name, nn.Parameter(torch.zeros(1, 2, 4)))
    vit.register_parameter("kernel", nn.Parameter(torch.zeros(4, 3, 2, 2)))
    decayed, plain = group_names(vit)
    assert decayed == {"kernel"}
    assert plain == {"cls_token", "reg_token", "pos_embed"}


@pytest.mark.parametrize("tie_weights", [True, False])
def test_every_trainable_tensor_is_in_one_group_once(tie_weights):
    module = everything(tie_weights)
    module["bridge"].norm.requires_grad_(False)
    listed = [p for group in parameter_groups(module, 0.1) for p in group.parameters]
    assert len({id(p) for p in listed}) == len(listed)
    assert {id(p) for p in listed} == {id(p) for p in module.parameters() if p.requires_grad}
    names = [name for group in parameter_groups(module, 0.1) for name in group.names]
    assert ("decoder.head.weight" in names) is not tie_weights


def test_a_group_without_parameters_is_left_out():
    assert [g.weight_decay for g in parameter_groups(nn.LayerNorm(3), 0.1)] == [0.0]
    assert [g.weight_decay for g in parameter_groups(nn.Linear(3, 3, bias=False), 0.1)] == [0.1]


def test_groups_come_in_an_order_of_decay_and_then_of_learning_rate():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    scales = {"0.weight": 0.25, "0.bias": 0.25, "1.weight": 0.5, "1.bias": 0.5}
    groups = parameter_groups(module, 0.1, scales)
    assert [(g.names, g.weight_decay, g.scale) for g in groups] == [
        (("2.weight",), 0.1, 1.0),
        (("1.weight",), 0.1, 0.5),
        (("0.weight",), 0.1, 0.25),
        (("2.bias",), 0.0, 1.0),
        (("1.bias",), 0.0, 0.5),
        (("0.bias",), 0.0, 0.25),
    ]


def test_cosine_follows_its_formula():
    schedule = Cosine(warmup_steps=4, final=0.1)
    assert [schedule(step, 24) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    for step in range(4, 24):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 20)) / 2
        assert schedule(step, 24) == pytest.approx(expected, abs=1e-12)
    assert schedule(4, 24) == 1.0
    assert schedule(14, 24) == pytest.approx(0.55)
    assert schedule(24, 24) == schedule(30, 24) == pytest.approx(0.1)
    assert Cosine(warmup_steps=0)(0, 10) == 1.0


def test_warmup_stable_decay_follows_its_formula():
    schedule = WarmupStableDecay(warmup_steps=5, decay_share=0.25, final=0.2)
    factors = [schedule(step, 40) for step in range(41)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:31] == [1.0] * 26
    assert factors[30:] == pytest.approx([0.2 + 0.8 * (10 - i) / 10 for i in range(11)])


def test_constant_only_warms_up():
    assert [Constant(2)(step, 100) for step in (0, 1, 2, 99)] == [0.5, 1.0, 1.0, 1.0]
    assert Constant(0)(0, 100) == 1.0


@pytest.mark.parametrize("schedule", [Cosine(10), WarmupStableDecay(10), Constant(10)])
def test_schedules_stay_in_the_unit_interval_even_when_shorter_than_their_warm_up(schedule):
    for num_steps in (1, 5, 10, 11, 50):
        assert all(0 < schedule(step, num_steps) <= 1 for step in range(num_steps))


def small_problem(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2)).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    return module, x, torch.randn(9, 2, generator=generator, dtype=torch.float64)


def test_adamw_is_the_paper_s_update():
    """Adam with bias correction and decoupled decay (arXiv:1711.05101, algorithm 2), written out in float64."""
    lr, decay, (beta1, beta2), eps = 0.03, 0.2, (0.8, 0.95), 1e-6
    module, x, y = small_problem()
    optimizer = AdamW(lr, decay, (beta1, beta2), eps)(module)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    mean = {name: torch.zeros_like(p) for name, p in expected.items()}
    square = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 6):
        rate = set_learning_rate(optimizer, 1 / step)
        assert rate == pytest.approx(lr / step)
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        for name, p in module.named_parameters():
            mean[name] = beta1 * mean[name] + (1 - beta1) * p.grad
            square[name] = beta2 * square[name] + (1 - beta2) * p.grad**2
            update = mean[name] / (1 - beta1**step) / ((square[name] / (1 - beta2**step)).sqrt() + eps)
            own_decay = decay if p.ndim >= 2 else 0.0
            expected[name] = expected[name] - rate * own_decay * expected[name] - rate * update
        optimizer.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-10, atol=1e-12)


def test_adamw_equals_torch_s_own_loop():
    ours, x, y = small_problem()
    theirs, _, _ = small_problem()
    optimizer = AdamW(lr=0.02, weight_decay=0.1)(ours)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim <= 1]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.9, 0.98),
        foreach=False,
        fused=False,
    )
    for _ in range(5):
        for module, optim in ((ours, optimizer), (theirs, reference)):
            optim.zero_grad()
            (module(x) - y).square().mean().backward()
            optim.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.95, 0.99), (0.9, 1.0), (-0.1, 0.9)])
def test_bad_betas_are_refused(betas):
    with pytest.raises(UserError, match=r"^betas: [^\n]* must be two numbers in \[0, 1\)"):
        AdamW(betas=betas)


def test_set_learning_rate_scales_each_group_s_own_peak():
    optimizer = AdamW(lr=0.4)(small_problem()[0])
    optimizer.param_groups[1]["peak_lr"] = 0.1
    assert set_learning_rate(optimizer, 0.5) == 0.2
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.05])
    set_learning_rate(optimizer, 1.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.4, 0.1])


def test_moving_average_follows_its_recurrence():
    module, _, _ = small_problem()
    module.register_buffer("count", torch.tensor(0))
    average = ExponentialMovingAverage(module, decay=0.5)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for step in range(15):
        decay = min(0.5, (1 + step) / (10 + step))
        assert (decay == 0.5) is (step >= 8)
        for name, p in module.named_parameters():
            p.data += torch.randn(p.shape, generator=generator, dtype=p.dtype)
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
        module.count += 1
        average.update(module, step)
    for name, value in expected.items():
        torch.testing.assert_close(average.tensors[name], value, rtol=1e-12, atol=1e-12)
    assert average.tensors["count"].item() == 15
    assert not any(t.requires_grad for t in average.tensors.values())


def test_moving_average_keeps_tied_tensors_equal_and_loads_back():
    module = everything()
    average = ExponentialMovingAverage(module, 0.9)
    for p in module.parameters():
        p.data += 1
    average.update(module, 100)
    torch.testing.assert_close(
        average.tensors["decoder.head.weight"], average.tensors["decoder.token_embedding.weight"], rtol=0, atol=0
    )
    again = ExponentialMovingAverage(everything(), 0.9)
    again.load(average.tensors)
    assert all(torch.equal(again.tensors[name], value) for name, value in average.tensors.items())
    module.load_state_dict(average.tensors)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5, -0.1])
def test_bad_moving_average_decay_is_refused(decay):
    with pytest.raises(UserError, match=r"^train\.ema_decay: [^\n]* must lie between 0 and 1"):
        ExponentialMovingAverage(nn.Linear(2, 2), decay)


# Muon


def test_hidden_matrices_leave_out_embeddings_heads_and_everything_that_is_no_matrix():
    module = everything()
    hidden = hidden_matrices(module)
    assert {"bridge.attention.query.weight", "decoder.unimodal_layers.0.feed_forward.0.weight"} <= hidden
    assert hidden.isdisjoint({"decoder.head.weight", "decoder.token_embedding.weight", "bridge.queries"})
    parameters = dict(module.named_parameters())
    assert all(parameters[name].ndim == 2 for name in hidden)


def test_muon_steps_hidden_matrices_and_adamw_the_rest_each_once():
    torch.manual_seed(0)
    module, hidden = everything(), hidden_matrices(everything())
    pair = Muon(lr=0.01, weight_decay=0.1)(module)
    by_muon = {id(p) for group in pair.first.param_groups for p in group["params"]}
    by_adamw = [id(p) for group in pair.second.param_groups for p in group["params"]]
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[key] for key in by_muon} == hidden
    assert {names[key] for key in by_adamw} == set(names.values()) - hidden
    assert len(by_adamw) == len(set(by_adamw))
    assert [group["weight_decay"] for group in pair.param_groups] == [0.1, 0.1, 0.0]
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    set_learning_rate(pair, 0.5)
    assert {group["lr"] for group in pair.param_groups} == {0.005}
    pair.step()
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())
    pair.zero_grad()
    assert all(p.grad is None for p in module.parameters())


def test_an_optimizer_pair_resumes_where_it_was():
    def trained(steps: int, state: dict | None = None, module: nn.ModuleDict | None = None):
        module = module or everything()
        pair = Muon(lr=0.01)(module)
        if state is not None:
            pair.load_state_dict(state)
        for step in range(steps):
            generator = torch.Generator().manual_seed(step if state is None else step + 2)
            for parameter in module.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            pair.step()
        return module, pair

    torch.manual_seed(0)
    straight, _ = trained(4)
    torch.manual_seed(0)
    stopped, pair = trained(2)
    resumed, _ = trained(2, pair.state_dict(), stopped)
    for (name, left), right in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), name
