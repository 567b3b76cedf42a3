"""Projections against the same computation written out plainly."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.errors import UserError
from mmlm.model.bridges.projection import LinearProjection, MlpProjection

N, PATCH_WIDTH, WIDTH = 24, 10, 8
GRID = (4, 6)


def joined(normed: torch.Tensor, factor: int) -> list[torch.Tensor]:
    """The input of each memory token of one image: its patches one after the other, row by row."""
    rows = normed.view(*GRID, PATCH_WIDTH)
    return [
        torch.cat([rows[row + i, column + j] for i in range(factor) for j in range(factor)])
        for row in range(0, GRID[0], factor)
        for column in range(0, GRID[1], factor)
    ]


@pytest.mark.parametrize("factor", [1, 2])
def test_linear_projection_is_one_layer_on_each_square(
    randomise, make_patches, layer_norm, assert_same_gradients, factor
):
    bridge, x = randomise(LinearProjection(PATCH_WIDTH, GRID, WIDTH, factor)), make_patches(N, PATCH_WIDTH)
    x.requires_grad_()
    assert (bridge.memory_width, bridge.pooled_width, bridge.num_memory) == (WIDTH, PATCH_WIDTH, N // factor**2)
    out, normed = bridge(x), layer_norm(x, bridge.patch_norm)
    layer = bridge.projection
    memory = torch.stack(
        [torch.stack([layer.weight @ token + layer.bias for token in joined(image, factor)]) for image in normed]
    )
    pooled = sum(normed.unbind(1)) / N
    torch.testing.assert_close(out.memory, memory, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.pooled, pooled, rtol=1e-10, atol=1e-10)
    assert_same_gradients([out.memory, out.pooled], [memory, pooled], [x, *bridge.parameters()])


@pytest.mark.parametrize("factor", [1, 2])
def test_mlp_projection_is_two_layers_on_each_square(
    randomise, make_patches, layer_norm, assert_same_gradients, factor
):
    bridge = randomise(MlpProjection(PATCH_WIDTH, GRID, WIDTH, mlp_ratio=1.5, pixel_shuffle=factor))
    x = make_patches(N, PATCH_WIDTH).requires_grad_()
    first, _, second = bridge.projection
    assert first.weight.shape == (15, PATCH_WIDTH * factor**2)
    assert (bridge.memory_width, bridge.pooled_width, bridge.num_memory) == (WIDTH, PATCH_WIDTH, N // factor**2)
    out, normed = bridge(x), layer_norm(x, bridge.patch_norm)

    def project(token: torch.Tensor) -> torch.Tensor:
        return second.weight @ F.gelu(first.weight @ token + first.bias) + second.bias

    memory = torch.stack([torch.stack([project(token) for token in joined(image, factor)]) for image in normed])
    pooled = sum(normed.unbind(1)) / N
    torch.testing.assert_close(out.memory, memory, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.pooled, pooled, rtol=1e-10, atol=1e-10)
    assert_same_gradients([out.memory, out.pooled], [memory, pooled], [x, *bridge.parameters()])


@pytest.mark.parametrize("kind", [LinearProjection, MlpProjection])
def test_memory_token_n_is_patch_n(randomise, make_patches, kind):
    bridge, x = randomise(kind(PATCH_WIDTH, GRID, WIDTH)), make_patches(N, PATCH_WIDTH)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(bridge(x[:, order]).memory, bridge(x).memory[:, order], rtol=1e-10, atol=1e-10)
    assert torch.equal(bridge.patch_attention(x)[1], torch.eye(N))


@pytest.mark.parametrize("kind", [LinearProjection, MlpProjection])
def test_prefix_tokens_are_projected_too(randomise, make_patches, kind):
    bridge = randomise(kind(PATCH_WIDTH, GRID, WIDTH, num_prefix_tokens=2))
    assert bridge(make_patches(N + 2, PATCH_WIDTH)).memory.shape[1] == bridge.num_memory == N + 2


def test_an_mlp_without_hidden_units_is_refused():
    with pytest.raises(UserError, match=r"^mlp_ratio: 0\.0 leaves no hidden units; use one above 0"):
        MlpProjection(PATCH_WIDTH, GRID, WIDTH, mlp_ratio=0.0)
