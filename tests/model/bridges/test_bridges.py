"""Bridges against the same computation written out plainly."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlm.errors import UserError
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.bridges.projection import MlpProjection

B, N, PATCH_WIDTH, WIDTH, HEADS = 3, 6, 10, 8, 2
GRID = (2, 3)


def patches(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, N, PATCH_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooler(num_queries: int | None = 4, feed_forward: bool = False) -> AttentionalPooler:
    """In float64 with every parameter random, so that nothing hides behind a zero or a one."""
    torch.manual_seed(0)
    bridge = AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, HEADS, num_queries, feed_forward).double()
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return bridge


def layer_norm(x: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def plainly_pooled(bridge: AttentionalPooler, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image by image, query by query, head by head: pooled float[B, M + 1, D] and attention float[B, H, M + 1, N]."""
    size = WIDTH // HEADS
    attention = bridge.attention
    queries = layer_norm(bridge.queries, bridge.query_norm) @ attention.query.weight.T + attention.query.bias
    outputs, maps = [], torch.zeros(B, HEADS, len(queries), N, dtype=x.dtype)
    for b in range(B):
        normed = layer_norm(x[b], bridge.patch_norm)
        both = normed @ attention.key_value.weight.T + attention.key_value.bias
        keys, values = both[:, :WIDTH], both[:, WIDTH:]
        for q, query in enumerate(queries):
            heads = []
            for h in range(HEADS):
                part = slice(h * size, (h + 1) * size)
                scores = torch.stack([query[part] @ keys[n, part] for n in range(N)]) / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum()
                maps[b, h, q] = weights.detach()
                heads.append(sum(weights[n] * values[n, part] for n in range(N)))
            outputs.append(torch.cat(heads) @ attention.output.weight.T + attention.output.bias)
    pooled = torch.stack(outputs).view(B, len(queries), WIDTH)
    if bridge.feed_forward is not None:
        norm, mlp = bridge.feed_forward
        hidden = F.gelu(layer_norm(pooled, norm) @ mlp[0].weight.T + mlp[0].bias)
        pooled = pooled + hidden @ mlp[2].weight.T + mlp[2].bias
    return layer_norm(pooled, bridge.norm), maps


@pytest.mark.parametrize("feed_forward", [False, True])
def test_attentional_pooler_equals_the_plain_computation_with_its_gradients(feed_forward):
    bridge, x = pooler(feed_forward=feed_forward), patches().requires_grad_()
    out = bridge(x)
    expected, maps = plainly_pooled(bridge, x)
    torch.testing.assert_close(out.pooled, expected[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.memory, expected[:, 1:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        bridge.patch_attention(x).double(), maps.mean(dim=1)[:, 1:], rtol=1e-5, atol=1e-6, check_dtype=False
    )
    weights = torch.randn(B, 5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [x, *bridge.parameters()]
    ours = torch.autograd.grad(
        (out.memory * weights[:, 1:]).sum() + (out.pooled * weights[:, 0]).sum(), inputs, retain_graph=True
    )
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_without_queries_the_memory_is_the_projected_patches():
    bridge, x = pooler(num_queries=None), patches()
    out = bridge(x)
    normed = layer_norm(x, bridge.patch_norm)
    expected = normed @ bridge.memory_projection.weight.T + bridge.memory_projection.bias
    torch.testing.assert_close(out.memory, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.pooled, plainly_pooled(bridge, x)[0][:, 0], rtol=1e-10, atol=1e-10)
    assert bridge.queries.shape == (1, WIDTH)
    assert torch.equal(bridge.patch_attention(x)[1], torch.eye(N))


def test_pooling_does_not_care_for_the_order_of_patches():
    bridge, x = pooler(), patches()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    one, other = bridge(x), bridge(x[:, order])
    torch.testing.assert_close(one.memory, other.memory, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bridge.patch_attention(x)[..., order], bridge.patch_attention(x[:, order]))


def test_patch_attention_is_a_distribution_over_patches():
    attention = pooler().patch_attention(patches())
    assert attention.shape == (B, 4, N)
    assert attention.dtype == torch.float32
    assert attention.min() >= 0
    torch.testing.assert_close(attention.sum(-1), torch.ones(B, 4))


def test_mlp_projection_is_two_layers_on_each_patch_and_a_mean():
    torch.manual_seed(0)
    bridge, x = MlpProjection(PATCH_WIDTH, GRID, WIDTH, mlp_ratio=1.5).double(), patches()
    assert (bridge.memory_width, bridge.pooled_width) == (WIDTH, PATCH_WIDTH)
    out = bridge(x)
    first, _, second = bridge.projection
    assert first.weight.shape == (15, PATCH_WIDTH)
    normed = layer_norm(x, bridge.patch_norm)
    for b in range(B):
        for n in range(N):
            hidden = F.gelu(first.weight @ normed[b, n] + first.bias)
            torch.testing.assert_close(out.memory[b, n], second.weight @ hidden + second.bias)
        torch.testing.assert_close(out.pooled[b], sum(normed[b]) / N)
    assert torch.equal(bridge.patch_attention(x)[0], torch.eye(N))


@pytest.mark.parametrize(
    ("bridge", "memory_shape"),
    [
        (pooler(), (0, 4, WIDTH)),
        (pooler(None), (0, N, WIDTH)),
        (MlpProjection(PATCH_WIDTH, GRID, WIDTH).double(), (0, N, WIDTH)),
    ],
)
def test_a_batch_without_images_gives_no_memory(bridge, memory_shape):
    out = bridge(patches()[:0])
    assert out.memory.shape == memory_shape
    assert out.pooled.shape == (0, bridge.pooled_width)


@pytest.mark.parametrize("num_queries", [0, -3])
def test_no_queries_at_all_are_refused(num_queries):
    with pytest.raises(UserError, match=rf"^bridge\.num_queries: {num_queries} must be at least 1; null keeps"):
        AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, HEADS, num_queries)
