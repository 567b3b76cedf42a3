"""The Q-Former against the same computation written out plainly."""

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.model.bridges.q_former import QFormer

N, PATCH_WIDTH, WIDTH, HEADS, QUERIES = 6, 10, 8, 2, 4


@pytest.fixture
def q_former(randomise):
    """``q_former(depth, cross_every, pool)`` with random parameters."""
    return lambda depth=3, cross_every=2, pool=True: randomise(
        QFormer(PATCH_WIDTH, WIDTH, depth, HEADS, QUERIES, cross_every, mlp_ratio=1.5, pool=pool), scale=0.5
    )


@pytest.fixture
def query_plainly(layer_norm, attend, two_layers):
    """``query_plainly(bridge, x)``: all queries after the last norm, and the last cross-attention's weights."""

    def query(bridge: QFormer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        results, maps = [], []
        for image in images:
            patches, x = layer_norm(image, bridge.patch_norm), bridge.queries
            for layer in bridge.layers:
                normed = layer_norm(x, layer.self_norm)
                x = x + attend(layer.self_attention, normed, normed)[0]
                if layer.cross_attention is not None:
                    read, weights = attend(layer.cross_attention, layer_norm(x, layer.cross_norm), patches)
                    x = x + read
                x = x + two_layers(layer_norm(x, layer.feed_forward_norm), layer.feed_forward)
            results.append(layer_norm(x, bridge.norm))
            maps.append(weights)
        return torch.stack(results), torch.stack(maps)

    return query


@pytest.mark.parametrize(("depth", "cross_every"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_it_equals_the_plain_computation_with_its_gradients(
    q_former, query_plainly, make_patches, assert_same_gradients, depth, cross_every
):
    bridge, x = q_former(depth, cross_every), make_patches(N, PATCH_WIDTH).requires_grad_()
    out = bridge(x)
    expected, maps = query_plainly(bridge, x)
    torch.testing.assert_close(out.pooled, expected[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.memory, expected[:, 1:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bridge.patch_attention(x).double(), maps.mean(dim=1)[:, 1:], rtol=1e-4, atol=1e-6)
    assert_same_gradients([out.pooled, out.memory], [expected[:, 0], expected[:, 1:]], [x, *bridge.parameters()])


def test_without_pooling_every_query_is_memory(q_former, query_plainly, make_patches):
    bridge, x = q_former(pool=False), make_patches(N, PATCH_WIDTH)
    assert bridge.queries.shape == (QUERIES, WIDTH)
    expected, maps = query_plainly(bridge, x)
    torch.testing.assert_close(bridge(x).memory, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bridge.patch_attention(x).double(), maps.mean(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("cross_every", "crosses"), [(1, [1, 1, 1, 1, 1]), (2, [1, 0, 1, 0, 1]), (3, [1, 0, 0, 1, 0]), (5, [1, 0, 0, 0, 0])]
)
def test_every_nth_layer_from_the_first_sees_the_patches(q_former, cross_every, crosses):
    layers = q_former(5, cross_every).layers
    assert [layer.cross_attention is not None for layer in layers] == crosses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, r"depth: 0 must be at least 1"),
        ({"num_queries": 0}, r"num_queries: 0 must be at least 1"),
        ({"cross_every": 0}, r"cross_every: 0 must be at least 1"),
        ({"cross_every": 3}, r"cross_every: 3 must be at most the depth, which is 2"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio: 0\.0 leaves no hidden units; use one above 0, such as 4\.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=rf"^{message}$"):
        QFormer(PATCH_WIDTH, WIDTH, **settings)
