"""Transformer parts against plain formulas and PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlm.core.errors import UserError
from mmlm.model.blocks import (
    INIT_STD,
    AttentionRecord,
    FeedForward,
    KeyValueCache,
    Layout,
    MultiHeadAttention,
    RmsNorm,
    SwiGlu,
    attention_weights,
    init_linears,
    rotate,
    rows_of,
    sinusoidal_positions,
)

LENGTHS = torch.tensor([3, 1, 4, 2])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_packing_keeps_real_tokens_in_row_major_order_and_padding_back_gives_zeros():
    layout = Layout.of_lengths(LENGTHS, 5, multiple=1)
    x = noise(4, 5, 2)
    packed = layout.pack(x)
    expected = torch.cat([x[row, :length] for row, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(packed, expected, rtol=0, atol=0)
    back = layout.pad(packed)
    mask = Layout.mask(LENGTHS, 5)
    assert torch.equal(back, x * mask[..., None])
    assert torch.equal(layout.pack(back), packed)


def test_packing_passes_gradients_to_real_tokens_only():
    layout = Layout.of_lengths(LENGTHS, 5, multiple=1)
    x = noise(4, 5, 2).requires_grad_()
    layout.pad(layout.pack(x) ** 2).sum().backward()
    mask = Layout.mask(LENGTHS, 5)[..., None]
    torch.testing.assert_close(x.grad, 2 * x.detach() * mask)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 10), (5, 10), (4, 12), (16, 16), (64, 20)])
def test_packed_rows_are_filled_up_with_padding_places(multiple, rows):
    layout = Layout.of_lengths(LENGTHS, 5, multiple=multiple)
    x = noise(4, 5, 2)
    packed = layout.pack(x)
    assert len(packed) == rows
    expected = torch.cat([x[row, :length] for row, length in enumerate(LENGTHS.tolist())])
    assert torch.equal(layout.real(packed), expected)
    assert layout.index.unique().numel() == rows
    mask = Layout.mask(LENGTHS, 5)
    assert torch.equal(layout.pad(packed)[mask], x[mask])


def test_a_layout_that_does_not_pack_keeps_every_place():
    layout = Layout.of_lengths(LENGTHS, 5, packed=False)
    x = noise(4, 5, 2)
    assert layout.pack(x).shape == (20, 2)
    assert torch.equal(layout.pad(layout.pack(x)), x)


def test_rows_of_gives_each_caption_its_image_and_survives_a_batch_without_images():
    memory = noise(2, 3, 4)
    rows = rows_of(memory, torch.tensor([1, -1, 0, 1]))
    assert torch.equal(rows[[0, 2, 3]], memory[[1, 0, 1]])
    assert rows_of(memory[:0], torch.tensor([-1, -1])).shape == (2, 3, 4)


def test_cache_grows_along_the_tokens():
    cache = KeyValueCache()
    assert cache.length == 0
    whole = noise(2, 3, 5, 4)
    cache.extend(whole[:, :, :2], -whole[:, :, :2])
    keys, values = cache.extend(whole[:, :, 2:], -whole[:, :, 2:])
    assert cache.length == 5
    assert torch.equal(keys, whole)
    assert torch.equal(values, -whole)


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


def masks() -> dict[str, dict[str, object]]:
    allowed = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    return {"all": {}, "causal": {"causal": True}, "mask": {"mask": allowed | torch.eye(5, dtype=torch.bool)}}


@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
def test_attention_weights_are_those_of_scaled_dot_product_attention(kind):
    options = masks()[kind]
    queries, keys, values = (noise(2, 3, 5, 4, seed=s).float() for s in range(3))
    weights = attention_weights(queries, keys, **options)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    mask, causal = options.get("mask"), options.get("causal", False)
    expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
    torch.testing.assert_close(weights @ values, expected, rtol=1e-5, atol=1e-6)
    if kind == "causal":
        assert weights.triu(1).count_nonzero() == 0
    if kind == "mask":
        assert weights.masked_select(~mask.expand_as(weights)).count_nonzero() == 0


def test_attention_weights_are_float32_under_autocast():
    queries, keys = (noise(2, 3, 5, 4, seed=s).float() for s in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        weights = attention_weights(queries, keys)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, attention_weights(queries, keys))


@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
def test_multi_head_attention_equals_pytorch_s_own(kind):
    torch.manual_seed(0)
    ours = MultiHeadAttention(12, 3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.query.weight, ours.key_value.weight]).detach(),
            "in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]).detach(),
            "out_proj.weight": ours.output.weight.detach(),
            "out_proj.bias": ours.output.bias.detach(),
        }
    )
    x = noise(2, 5, 12)
    options = masks()[kind]
    record = AttentionRecord()
    out = ours.output(ours.attend(ours.heads(ours.query(x)), *ours.keys_values(x), **options, record=record))
    hidden = None
    if kind == "causal":
        hidden = ~torch.ones(5, 5, dtype=torch.bool).tril()
    if kind == "mask":
        hidden = ~options["mask"].expand(2, 3, 5, 5).flatten(0, 1)
    expected, weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(record.weights[0].double(), weights, rtol=1e-5, atol=1e-6)


def test_a_memory_of_another_width_equals_pytorch_s_own():
    torch.manual_seed(0)
    ours = MultiHeadAttention(8, 2, memory_width=5).double()
    theirs = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True).double()
    keys, values = ours.key_value.weight.detach().chunk(2)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(keys)
        theirs.v_proj_weight.copy_(values)
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, memory = noise(2, 3, 8), noise(2, 6, 5)
    out = ours.output(ours.attend(ours.heads(ours.query(x)), *ours.keys_values(memory)))
    torch.testing.assert_close(out, theirs(x, memory, memory)[0], rtol=1e-10, atol=1e-10)


def test_causal_attention_over_a_longer_past_aligns_the_last_query_with_the_last_key():
    attention = MultiHeadAttention(8, 2)
    queries, keys, values = (noise(2, 2, 6, 4, seed=s) for s in range(3))
    whole = attention.attend(queries, keys, values, causal=True)
    for first in range(6):
        part = attention.attend(queries[:, :, first:], keys, values, causal=True)
        torch.testing.assert_close(part, whole[:, first:], rtol=1e-12, atol=1e-12)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match=r"^num_heads: 3 does not divide the width 8; choose one that does$"):
        MultiHeadAttention(8, 3)


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_grouped_queries_equal_full_attention_with_repeated_key_value_heads(key_value_heads):
    """Head k of keys and values serves query heads k * H / K to (k + 1) * H / K - 1 (arXiv:2305.13245, figure 2)."""
    grouped = MultiHeadAttention(8, 4, memory_width=5, num_key_value_heads=key_value_heads).double()
    full = MultiHeadAttention(8, 4, memory_width=5).double()
    full.query.load_state_dict(grouped.query.state_dict())
    full.output.load_state_dict(grouped.output.state_dict())
    with torch.no_grad():
        for name in ("weight", "bias"):
            own = getattr(grouped.key_value, name).unflatten(0, (2, key_value_heads, 2))
            getattr(full.key_value, name).copy_(own.repeat_interleave(4 // key_value_heads, dim=1).flatten(0, 2))
    x, memory = noise(2, 6, 8), noise(2, 6, 5, seed=1)
    records = [AttentionRecord(), AttentionRecord()]
    outs = []
    for attention, record in zip((grouped, full), records, strict=True):
        keys, values = attention.keys_values(memory)
        queries = attention.heads(attention.query(x))
        outs.append(attention.output(attention.attend(queries, keys, values, causal=True, record=record)))
    assert grouped.keys_values(memory)[0].shape == (2, key_value_heads, 6, 2)
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(records[0].weights, records[1].weights)


@pytest.mark.parametrize("key_value_heads", [0, 3, 8])
def test_key_value_heads_that_do_not_divide_the_heads_are_refused(key_value_heads):
    with pytest.raises(UserError, match=rf"^num_key_value_heads: {key_value_heads} does not divide the 4 query heads"):
        MultiHeadAttention(8, 4, num_key_value_heads=key_value_heads)


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
