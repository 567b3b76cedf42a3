"""Attentional pooling against the same computation written out plainly, and against open_clip's."""

import open_clip.transformer
import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.model.bridges.attentional_pooler import AttentionalPooler

B, N, PATCH_WIDTH, WIDTH, HEADS = 3, 6, 10, 8, 2
GRID = (2, 3)
QUERIES = 4


@pytest.fixture
def pooler(randomise):
    """``pooler(num_queries, feed_forward, contrastive)`` with random parameters."""

    def make(num_queries=QUERIES, feed_forward=False, contrastive="shared"):
        return randomise(AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, HEADS, num_queries, feed_forward, contrastive))

    return make


@pytest.fixture
def pool_plainly(layer_norm, attend, two_layers):
    """``pool_plainly(bridge, x)``: what each of its own queries reads in x, float64[B, Q, D], and their weights."""

    def pool(bridge: AttentionalPooler, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        queries = layer_norm(bridge.queries, bridge.query_norm)
        both = [attend(bridge.attention, queries, layer_norm(image, bridge.patch_norm)) for image in x]
        read, maps = (torch.stack(part) for part in zip(*both, strict=True))
        if bridge.feed_forward is not None:
            norm, mlp = bridge.feed_forward
            read = read + two_layers(layer_norm(read, norm), mlp)
        return layer_norm(read, bridge.norm), maps

    return pool


@pytest.mark.parametrize("feed_forward", [False, True])
def test_shared_the_first_query_is_the_contrastive_one(
    pooler, pool_plainly, make_patches, assert_same_gradients, feed_forward
):
    bridge, x = pooler(feed_forward=feed_forward), make_patches(N, PATCH_WIDTH).requires_grad_()
    out = bridge(x)
    expected, maps = pool_plainly(bridge, x)
    torch.testing.assert_close(out.pooled, expected[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.memory, expected[:, 1:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        bridge.patch_attention(x).double(), maps.mean(dim=1)[:, 1:], rtol=1e-5, atol=1e-6, check_dtype=False
    )
    assert_same_gradients([out.pooled, out.memory], [expected[:, 0], expected[:, 1:]], [x, *bridge.parameters()])


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("contrastive", ["parallel", "cascaded"])
def test_a_pooler_of_its_own_reads_the_patches_or_the_memory(
    pooler, pool_plainly, make_patches, assert_same_gradients, contrastive, feed_forward
):
    bridge, x = pooler(QUERIES, feed_forward, contrastive), make_patches(N, PATCH_WIDTH).requires_grad_()
    assert bridge.queries.shape == (QUERIES, WIDTH)
    assert bridge.contrastive_pooler.queries.shape == (1, WIDTH)
    out = bridge(x)
    memory, maps = pool_plainly(bridge, x)
    pooled = pool_plainly(bridge.contrastive_pooler, x if contrastive == "parallel" else memory)[0][:, 0]
    torch.testing.assert_close(out.memory, memory, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.pooled, pooled, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        bridge.patch_attention(x).double(), maps.mean(dim=1), rtol=1e-5, atol=1e-6, check_dtype=False
    )
    assert_same_gradients([out.pooled, out.memory], [pooled, memory], [x, *bridge.parameters()])


def test_only_the_cascade_sends_the_pooled_gradient_through_the_captioning_queries(pooler, make_patches):
    for contrastive, reached in (("parallel", False), ("cascaded", True)):
        bridge = pooler(contrastive=contrastive)
        bridge(make_patches(N, PATCH_WIDTH)).pooled.square().sum().backward()
        assert (bridge.queries.grad is not None) is reached, contrastive


def test_names_of_the_shared_layer_are_those_of_saved_runs():
    names = {
        "queries",
        *(f"{norm}.{kind}" for norm in ("query_norm", "patch_norm", "norm") for kind in ("weight", "bias")),
    }
    names |= {f"attention.{layer}.{kind}" for layer in ("query", "key_value", "output") for kind in ("weight", "bias")}
    state = AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, HEADS, QUERIES).state_dict()
    assert state.keys() == names
    assert state["queries"].shape == (1 + QUERIES, WIDTH)


def copy_into(theirs: open_clip.transformer.AttentionalPooler, bridge: AttentionalPooler) -> None:
    """open_clip's pooler with the weights of ours (all but the last norm, which is no part of it there)."""
    attention = bridge.attention
    key, value = attention.key_value.weight.chunk(2)
    state = {
        "query": bridge.queries,
        "ln_q.weight": bridge.query_norm.weight,
        "ln_q.bias": bridge.query_norm.bias,
        "ln_k.weight": bridge.patch_norm.weight,
        "ln_k.bias": bridge.patch_norm.bias,
        "attn.q_proj_weight": attention.query.weight,
        "attn.k_proj_weight": key,
        "attn.v_proj_weight": value,
        "attn.in_proj_bias": torch.cat([attention.query.bias, attention.key_value.bias]),
        "attn.out_proj.weight": attention.output.weight,
        "attn.out_proj.bias": attention.output.bias,
    }
    theirs.load_state_dict({key: tensor.detach() for key, tensor in state.items()})


@pytest.mark.parametrize("contrastive", ["shared", "parallel"])
def test_the_captioning_pooler_is_that_of_open_clip(pooler, make_patches, layer_norm, contrastive):
    bridge, x = pooler(contrastive=contrastive), make_patches(N, PATCH_WIDTH)
    num_queries = len(bridge.queries)
    theirs = open_clip.transformer.AttentionalPooler(WIDTH, PATCH_WIDTH, n_head=HEADS, n_queries=num_queries).double()
    copy_into(theirs, bridge)
    expected = layer_norm(theirs(x), bridge.norm)[:, num_queries - QUERIES :]
    torch.testing.assert_close(bridge(x).memory, expected, rtol=1e-10, atol=1e-10)


def test_without_queries_the_memory_is_the_projected_patches(pooler, pool_plainly, make_patches, layer_norm):
    bridge, x = pooler(num_queries=None), make_patches(N, PATCH_WIDTH)
    out = bridge(x)
    normed = layer_norm(x, bridge.patch_norm)
    expected = normed @ bridge.memory_projection.weight.T + bridge.memory_projection.bias
    torch.testing.assert_close(out.memory, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.pooled, pool_plainly(bridge, x)[0][:, 0], rtol=1e-10, atol=1e-10)
    assert bridge.queries.shape == (1, WIDTH)
    assert torch.equal(bridge.patch_attention(x)[1], torch.eye(N))


@pytest.mark.parametrize("num_queries", [0, -3])
def test_no_queries_at_all_are_refused(num_queries):
    with pytest.raises(UserError, match=rf"^num_queries: {num_queries} must be at least 1; null keeps"):
        AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, HEADS, num_queries)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": None, "pool": False}, r"^num_queries: null leaves nothing to pool .* use bridge=mlp"),
        (
            {"num_queries": None, "contrastive": "parallel"},
            r"^contrastive: parallel needs captioning queries, .* or use contrastive=shared",
        ),
        (
            {"contrastive": "cascaded", "pool": False},
            r"^contrastive: cascaded has no effect where the encoder pools; use contrastive=shared",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(settings, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, HEADS, **settings)
