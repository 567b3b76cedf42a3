"""ConvolutionalAbstractor against its formula written out in loops, and what its constructor refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError
from mmlm.model.bridges.abstractor import ConvolutionalAbstractor, ResidualConvolution

# Two cells along three and along five patches: the patches in the middle belong to both.
ROWS, COLUMNS, SIDE = 3, 5, 2
N, PATCH_WIDTH, WIDTH, HIDDEN = ROWS * COLUMNS, 6, 4, 8

Image = dict[tuple[int, int], Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def convolve(image: Image, block: ResidualConvolution, layer_norm) -> Image:
    """One residual convolution, place by place."""
    entered = {place: silu(layer_norm(block.enter.weight @ x, block.enter_norm)) for place, x in image.items()}
    hidden = {}
    for row, column in image:
        total = torch.zeros_like(image[row, column])
        for i in range(3):
            for j in range(3):
                neighbour = entered.get((row + i - 1, column + j - 1))
                if neighbour is not None:
                    total = total + block.mix.weight[:, 0, i, j] * neighbour
        hidden[row, column] = silu(layer_norm(total, block.mix_norm))
    mean = sum(hidden.values()) / len(hidden)
    squeezed = silu(block.squeeze.weight @ mean + block.squeeze.bias)
    gate = 1 / (1 + (-(block.excite.weight @ squeezed + block.excite.bias)).exp())
    return {
        place: silu(x + layer_norm(block.leave.weight @ (hidden[place] * gate), block.leave_norm))
        for place, x in image.items()
    }


def patches_of(cell: int, length: int, side: int) -> list[int]:
    """Those that lie at least in part between ``cell / side`` and ``(cell + 1) / side`` of the way."""
    return [n for n in range(length) if n * side < (cell + 1) * length and (n + 1) * side > cell * length]


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_its_formula(depth, pool, make_patches, randomise, layer_norm, assert_same_gradients):
    bridge = randomise(
        ConvolutionalAbstractor(
            PATCH_WIDTH, (ROWS, COLUMNS), WIDTH, side=SIDE, hidden_width=HIDDEN, depth=depth, pool=pool
        ),
        0.5,
    )
    patches = make_patches(N, PATCH_WIDTH).requires_grad_()
    memory, pooled, shares = [], [], torch.zeros(SIDE * SIDE, N)
    for tokens in patches:
        normed = [layer_norm(token, bridge.patch_norm) for token in tokens]
        image = {
            (row, column): bridge.enter.weight @ normed[row * COLUMNS + column] + bridge.enter.bias
            for row in range(ROWS)
            for column in range(COLUMNS)
        }
        for block in bridge.fine:
            image = convolve(image, block, layer_norm)
        cells = {}
        for i in range(SIDE):
            for j in range(SIDE):
                places = [(r, c) for r in patches_of(i, ROWS, SIDE) for c in patches_of(j, COLUMNS, SIDE)]
                cells[i, j] = sum(image[place] for place in places) / len(places)
                for row, column in places:
                    shares[i * SIDE + j, row * COLUMNS + column] = 1 / len(places)
        for block in bridge.coarse:
            cells = convolve(cells, block, layer_norm)
        memory.append(torch.stack([bridge.project.weight @ cell + bridge.project.bias for cell in cells.values()]))
        pooled.append(sum(normed) / N)
    found = bridge(patches)
    ours, expected = [found.memory], [torch.stack(memory)]
    if pool:
        ours, expected = [*ours, found.pooled], [*expected, torch.stack(pooled)]
    else:
        assert found.pooled is None
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(bridge.patch_attention(patches), shares.expand(len(patches), -1, -1))
    assert_same_gradients(ours, expected, [patches, *bridge.parameters()])


@pytest.mark.parametrize(
    ("side", "cells"), [(1, (1, 1)), (3, (3, 3)), (4, (4, 4)), (5, (5, 5)), (6, (6, 6)), (None, (3, 4))]
)
def test_its_cells_are_those_of_adaptive_pooling(side, cells, make_patches):
    grid = 6, 7
    bridge = ConvolutionalAbstractor(PATCH_WIDTH, grid, WIDTH, side=side, hidden_width=HIDDEN, depth=1)
    one_hot = torch.eye(42).view(1, 42, *grid)
    expected = F.adaptive_avg_pool2d(one_hot, cells).flatten(2).transpose(1, 2)
    patches = make_patches(42, PATCH_WIDTH).float()
    torch.testing.assert_close(bridge.patch_attention(patches), expected.expand(len(patches), -1, -1))
    assert bridge(patches).memory.shape == (len(patches), bridge.num_memory, WIDTH)
    assert bridge.num_memory == cells[0] * cells[1]


@pytest.mark.parametrize("side", [0, 4])
def test_cells_that_the_grid_does_not_fill_are_refused(side):
    message = f"^side: {side} must be at least 1 and at most the shorter side of the grid of 3 x 5 patches; use 1 to 3,"
    with pytest.raises(ArgumentError, match=message):
        ConvolutionalAbstractor(PATCH_WIDTH, (ROWS, COLUMNS), WIDTH, side=side)


@pytest.mark.parametrize(("argument", "value", "least"), [("hidden_width", 1, 2), ("depth", 0, 1)])
def test_too_little_is_refused(argument, value, least):
    with pytest.raises(ArgumentError, match=f"^{argument}: {value} must be at least {least}"):
        ConvolutionalAbstractor(PATCH_WIDTH, (ROWS, COLUMNS), WIDTH, side=SIDE, **{argument: value})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"num_prefix_tokens": 2}, "keeps 2 prefix tokens .* use an encoder without them"),
        ({"drops_patches": True}, "needs every patch, .* use encoder.patch_dropout=0"),
    ],
)
def test_an_encoder_without_a_full_grid_is_refused(inputs, message):
    with pytest.raises(UserError, match=message):
        ConvolutionalAbstractor(PATCH_WIDTH, (ROWS, COLUMNS), WIDTH, side=SIDE, **inputs)
