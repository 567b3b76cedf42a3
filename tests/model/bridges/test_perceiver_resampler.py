"""The Perceiver Resampler against the paper's pseudo-code written out plainly."""

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.model.bridges.perceiver_resampler import PerceiverResampler

N, PATCH_WIDTH, WIDTH, HEADS, DEPTH, LATENTS = 6, 10, 8, 2, 3, 4


@pytest.fixture
def resampler(randomise):
    """``resampler(depth, pool)`` with random parameters."""
    return lambda depth=DEPTH, pool=True: randomise(
        PerceiverResampler(PATCH_WIDTH, WIDTH, depth, HEADS, LATENTS, mlp_ratio=1.5, pool=pool), scale=0.5
    )


@pytest.fixture
def resample_plainly(layer_norm, attend, two_layers):
    """``resample_plainly(bridge, x)``: all latents after the last norm, and the last layer's weights [B, H, L, N + L].

    Image by image: x = x + attention(q=x, kv=[patches, x]); x = x + feed_forward(x).
    """

    def resample(bridge: PerceiverResampler, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        results, maps = [], []
        for image in images:
            projection = bridge.patch_projection
            patches = layer_norm(image, bridge.patch_norm) @ projection.weight.T + projection.bias
            x = bridge.latent_queries
            for layer in bridge.layers:
                normed = layer_norm(x, layer.attention_norm)
                read, weights = attend(layer.attention, normed, torch.cat([patches, normed]))
                x = x + read
                x = x + two_layers(layer_norm(x, layer.feed_forward_norm), layer.feed_forward)
            results.append(layer_norm(x, bridge.norm))
            maps.append(weights)
        return torch.stack(results), torch.stack(maps)

    return resample


@pytest.mark.parametrize("depth", [1, DEPTH])
def test_it_equals_the_plain_computation_with_its_gradients(
    resampler, resample_plainly, make_patches, assert_same_gradients, depth
):
    bridge, x = resampler(depth), make_patches(N, PATCH_WIDTH).requires_grad_()
    out = bridge(x)
    expected, _ = resample_plainly(bridge, x)
    torch.testing.assert_close(out.pooled, expected[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.memory, expected[:, 1:], rtol=1e-10, atol=1e-10)
    assert_same_gradients([out.pooled, out.memory], [expected[:, 0], expected[:, 1:]], [x, *bridge.parameters()])


def test_without_pooling_every_latent_is_memory(resampler, resample_plainly, make_patches):
    bridge, x = resampler(pool=False), make_patches(N, PATCH_WIDTH)
    assert bridge.latent_queries.shape == (LATENTS, WIDTH)
    torch.testing.assert_close(bridge(x).memory, resample_plainly(bridge, x)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pool", [True, False])
def test_patch_attention_is_the_last_layer_s_on_the_patches_renormalised(
    resampler, resample_plainly, make_patches, pool
):
    bridge, x = resampler(pool=pool), make_patches(N, PATCH_WIDTH)
    on_patches = resample_plainly(bridge, x)[1][:, :, int(pool) :, :N]
    expected = (on_patches / on_patches.sum(-1, keepdim=True)).mean(dim=1)
    attention = bridge.patch_attention(x)
    torch.testing.assert_close(attention.double(), expected, rtol=1e-4, atol=1e-6)
    assert (on_patches.sum(-1) < 0.99).any()  # so that renormalising is seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, r"depth: 0 must be at least 1"),
        ({"num_latents": -1}, r"num_latents: -1 must be at least 1"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio: 0\.0 leaves no hidden units; use one above 0, such as 4\.0"),
    ],
)
def test_sizes_below_one_are_refused(settings, message):
    with pytest.raises(UserError, match=rf"^{message}$"):
        PerceiverResampler(PATCH_WIDTH, WIDTH, **settings)
