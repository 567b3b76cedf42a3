"""Multi-head attention against PyTorch's own; its masks, cache and weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlm.core.errors import UserError
from mmlm.model.attention import AttentionRecord, KeyValueCache, MultiHeadAttention, attention_weights


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cache_grows_along_the_tokens():
    cache = KeyValueCache(room=9)
    assert cache.length == 0
    whole = noise(2, 3, 5, 4)
    cache.extend(whole[:, :, :2], -whole[:, :, :2])
    keys, values = cache.extend(whole[:, :, 2:], -whole[:, :, 2:])
    assert cache.length == 5
    assert torch.equal(keys, whole)
    assert torch.equal(values, -whole)


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
