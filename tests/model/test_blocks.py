"""Positions, feed-forward layers, norms and initial weights against plain formulas."""

import math

import pytest
import torch
from torch import nn

from mmlm.model.attention import MultiHeadAttention
from mmlm.model.blocks import INIT_STD, FeedForward, RmsNorm, SwiGlu, init_linears, rotate, sinusoidal_positions


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sinusoidal_positions_follow_the_paper_s_formula():
    width = 6
    table = sinusoidal_positions(9, width)
    for position in range(9):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, width // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sinusoidal_positions(4, 5).shape == (4, 5)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = noise(8, seed=1), noise(8, seed=2)
    queries, keys = query.expand(1, 1, 10, 8), key.expand(1, 1, 10, 8)
    scores = (rotate(queries) @ rotate(keys).transpose(-1, -2))[0, 0]
    for distance in range(-9, 10):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0].unique().numel() == 10
    shifted = rotate(queries, offset=5) @ rotate(keys, offset=5).transpose(-1, -2)
    torch.testing.assert_close(shifted[0, 0], scores, rtol=0, atol=1e-5)


def test_rotary_turns_pairs_of_columns_by_position_times_frequency():
    x = noise(1, 1, 7, 6)
    turned = rotate(x)
    for t in range(7):
        for i in range(3):
            angle = t * 10_000 ** (-i / 3)
            pair = complex(x[0, 0, t, i], x[0, 0, t, i + 3]) * complex(math.cos(angle), math.sin(angle))
            assert turned[0, 0, t, i].item() == pytest.approx(pair.real, abs=1e-5)
            assert turned[0, 0, t, i + 3].item() == pytest.approx(pair.imag, abs=1e-5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)


def test_rotary_continues_from_an_offset():
    x = noise(2, 3, 9, 4)
    pieces = [rotate(x[:, :, :4]), rotate(x[:, :, 4:5], offset=4), rotate(x[:, :, 5:], offset=5)]
    assert torch.equal(torch.cat(pieces, dim=2), rotate(x))


def test_swiglu_is_the_paper_s_formula_with_as_many_weights():
    layer = SwiGlu(12, mlp_ratio=4.0).double()
    x = noise(3, 12)
    gate, up = layer.gate_up.weight.chunk(2)
    gated = x @ gate.T
    expected = (gated * torch.sigmoid(gated) * (x @ up.T)) @ layer.output.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    weights = sum(p.numel() for p in FeedForward(12, 4.0).parameters() if p.ndim == 2)
    assert sum(p.numel() for p in layer.parameters()) == weights


def test_rms_norm_divides_by_the_root_mean_square_in_the_dtype_of_its_input():
    norm = RmsNorm(6).double()
    with torch.no_grad():
        norm.weight.copy_(noise(6))
    x = noise(3, 6, seed=1)
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    half = RmsNorm(6)(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_feed_forward_is_linear_gelu_linear():
    layer = FeedForward(6, mlp_ratio=2.5, out_width=4).double()
    x = noise(3, 6)
    hidden = x @ layer[0].weight.T + layer[0].bias
    assert hidden.shape == (3, 15)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(layer(x), gelu @ layer[2].weight.T + layer[2].bias, rtol=1e-10, atol=1e-10)


def test_init_keeps_the_size_of_signals_and_scales_residual_writers_by_depth():
    torch.manual_seed(0)
    part = nn.ModuleDict(
        {
            "attention": MultiHeadAttention(96, 4),
            "mlp": FeedForward(96),
            "gated": SwiGlu(96),
            "embedding": nn.Embedding(200, 96),
        }
    )
    gated = part["gated"]
    attention, mlp = part["attention"], part["mlp"]
    for depth, writers_share in ((16, 0.25), (None, 1.0)):
        init_linears(part, num_residual_layers=depth)
        for layer in (attention.query, attention.key_value, mlp[0], gated.gate_up):
            assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
            assert abs(layer.weight.mean().item()) < 0.005
        for layer in (attention.output, mlp[2], gated.output):
            assert layer.weight.std().item() == pytest.approx(writers_share * layer.in_features**-0.5, rel=0.05)
        for layer in (attention.query, attention.key_value, attention.output, mlp[0], mlp[2]):
            assert layer.bias.count_nonzero() == 0
        assert part["embedding"].weight.std().item() == pytest.approx(INIT_STD, rel=0.05)
