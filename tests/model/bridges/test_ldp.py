"""The lightweight downsample projector against the same computation written out window by window."""

import pytest
import torch

from mmlm.core.errors import ArgumentError, UserError
from mmlm.model.bridges.ldp import LightweightDownsampleProjector

PATCH_WIDTH, WIDTH = 10, 8

# The windows of a grid by a stride: the patches of each, counted row by row.
WINDOWS = [
    ((2, 6), 2, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
    ((3, 5), 2, [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], [10, 11], [12, 13], [14]]),
    ((4, 4), 3, [[0, 1, 2, 4, 5, 6, 8, 9, 10], [3, 7, 11], [12, 13, 14], [15]]),
    ((2, 3), 1, [[0], [1], [2], [3], [4], [5]]),
    ((2, 2), 2, [[0, 1, 2, 3]]),
]


def windows_by_hand(features, grid, stride):
    """float[N, D] of one image -> rows of columns of window means float[D], in loops over the windows' patches."""
    windows = []
    for top in range(0, grid[0], stride):
        windows.append([])
        for left in range(0, grid[1], stride):
            inside = [
                features[row * grid[1] + column]
                for row in range(top, min(top + stride, grid[0]))
                for column in range(left, min(left + stride, grid[1]))
            ]
            windows[-1].append(sum(inside) / len(inside))
    return windows


def with_positions(windows, convolution):
    """Each window plus, channel by channel, the weighted sum of its 3 x 3 neighbourhood; outside the grid is 0."""
    tokens = []
    for row in range(len(windows)):
        for column in range(len(windows[0])):
            token = windows[row][column] + convolution.bias
            for i in range(3):
                for j in range(3):
                    y, x = row + i - 1, column + j - 1
                    if 0 <= y < len(windows) and 0 <= x < len(windows[0]):
                        token = token + convolution.weight[:, 0, i, j] * windows[y][x]
            tokens.append(token)
    return torch.stack(tokens)


@pytest.mark.parametrize(("grid", "stride"), [(grid, stride) for grid, stride, _ in WINDOWS])
def test_memory_is_windows_of_an_mlp_plus_their_neighbours(
    randomise, make_patches, layer_norm, two_layers, assert_same_gradients, grid, stride
):
    bridge = randomise(LightweightDownsampleProjector(PATCH_WIDTH, grid, WIDTH, stride))
    x = make_patches(grid[0] * grid[1], PATCH_WIDTH).requires_grad_()
    out, normed = bridge(x), layer_norm(x, bridge.patch_norm)
    # In the paper's order: both layers on every patch, then the means.
    features = two_layers(normed, [*bridge.expand, bridge.project])
    memory = torch.stack([with_positions(windows_by_hand(image, grid, stride), bridge.position) for image in features])
    pooled = sum(normed.unbind(1)) / x.shape[1]
    assert (bridge.memory_width, bridge.pooled_width, bridge.num_memory) == (WIDTH, PATCH_WIDTH, memory.shape[1])
    torch.testing.assert_close(out.memory, memory, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.pooled, pooled, rtol=1e-10, atol=1e-10)
    assert_same_gradients([out.memory, out.pooled], [memory, pooled], [x, *bridge.parameters()])


@pytest.mark.parametrize(("grid", "stride", "windows"), WINDOWS)
def test_a_token_s_attention_is_even_on_its_window(make_patches, grid, stride, windows):
    bridge = LightweightDownsampleProjector(PATCH_WIDTH, grid, WIDTH, stride)
    weights = bridge.patch_attention(make_patches(grid[0] * grid[1], PATCH_WIDTH))
    expected = torch.zeros(len(windows), grid[0] * grid[1])
    for token, numbers in enumerate(windows):
        expected[token, numbers] = 1 / len(numbers)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected.expand(3, -1, -1))


def test_positions_tell_equal_patches_apart(randomise, make_patches):
    bridge = randomise(LightweightDownsampleProjector(PATCH_WIDTH, (6, 6), WIDTH))
    x = make_patches(1, PATCH_WIDTH).expand(-1, 36, -1)  # in every place the same patch
    memory = bridge(x).memory
    distances = torch.cdist(memory[0], memory[0])
    assert distances[~torch.eye(9, dtype=torch.bool)].min() > 1e-3


def test_without_pool_there_is_no_pooled_vector(make_patches):
    bridge = LightweightDownsampleProjector(PATCH_WIDTH, (4, 4), WIDTH, pool=False).double()
    assert bridge.pooled_width is None
    assert bridge(make_patches(16, PATCH_WIDTH)).pooled is None


@pytest.mark.parametrize(
    ("grid", "stride", "message"),
    [
        ((4, 4), 0, r"0 must be at least 1 and at most .* grid of 4 x 4 patches; use 1 to 4"),
        ((4, 4), 5, r"5 must be at least 1 and at most .* grid of 4 x 4 patches; use 1 to 4"),
        ((2, 6), 3, r"3 must be at least 1 and at most .* grid of 2 x 6 patches; use 1 to 2"),
    ],
)
def test_a_stride_that_does_not_fit_is_refused(grid, stride, message):
    with pytest.raises(ArgumentError, match=rf"^stride: {message}$"):
        LightweightDownsampleProjector(PATCH_WIDTH, grid, WIDTH, stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_tokens_without_a_place_on_the_grid_are_refused(stride):
    """At a stride of 1 too: the convolution needs the grid."""
    with pytest.raises(UserError, match=r"takes patches only, and .* 2 prefix tokens .*; use .* bridge=mlp$"):
        LightweightDownsampleProjector(PATCH_WIDTH, (4, 4), WIDTH, stride, num_prefix_tokens=2)
    with pytest.raises(UserError, match=r"needs every patch, .*; use encoder\.patch_dropout=0 or .* bridge=mlp$"):
        LightweightDownsampleProjector(PATCH_WIDTH, (4, 4), WIDTH, stride, drops_patches=True)
