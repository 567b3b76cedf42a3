"""Which patches a joined token is made of, and what does not fit."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.errors import UserError
from mmlm.model.bridges.pixel_shuffle import PixelShuffle


def test_a_token_is_a_square_of_patches_row_by_row():
    numbers = torch.arange(2 * 6).view(1, 12, 1)  # a grid of 2 x 6, each patch its own number
    tokens = PixelShuffle((2, 6), 2)(numbers)
    assert tokens.tolist() == [[[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]]


@pytest.mark.parametrize(("grid", "factor"), [((4, 6), 2), ((6, 3), 3), ((4, 4), 4)])
def test_it_is_torch_s_pixel_unshuffle_with_the_channels_inside(make_patches, grid, factor):
    x = make_patches(grid[0] * grid[1], 5)
    image = x.transpose(1, 2).unflatten(2, grid)
    unshuffled = F.pixel_unshuffle(image, factor)  # [B, D * r * r, rows / r, columns / r]
    expected = unshuffled.unflatten(1, (5, factor**2)).transpose(1, 2).flatten(1, 2).flatten(2).transpose(1, 2)
    shuffle = PixelShuffle(grid, factor)
    assert torch.equal(shuffle(x), expected)
    assert shuffle.num_tokens == expected.shape[1]


def test_a_token_s_attention_is_even_on_its_patches(make_patches):
    x = make_patches(12, 5)
    weights = PixelShuffle((2, 6), 2).attention(x)
    assert weights.shape == (3, 3, 12)
    assert weights.dtype == torch.float32
    for token, numbers in enumerate([[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]):
        expected = torch.zeros(12)
        expected[numbers] = 0.25
        assert torch.equal(weights[1, token], expected)


def test_a_factor_of_one_keeps_any_tokens(make_patches):
    shuffle, x = PixelShuffle((2, 3), 1, num_prefix_tokens=2), make_patches(5, 4)
    assert shuffle.num_tokens == 8
    assert torch.equal(shuffle(x), x)
    assert torch.equal(shuffle.attention(x)[2], torch.eye(5))


@pytest.mark.parametrize(
    ("grid", "factor", "num_prefix_tokens", "message"),
    [
        ((4, 4), 0, 0, r"0 must be at least 1; 1 keeps every patch"),
        ((4, 4), 3, 0, r"3 does not divide the grid of 4 x 4 patches; use one that does: 1, 2, 4"),
        ((7, 7), 2, 0, r"2 does not divide the grid of 7 x 7 patches; use one that does: 1, 7"),
        ((4, 6), 4, 0, r"4 does not divide the grid of 4 x 6 patches; use one that does: 1, 2"),
        ((4, 4), 2, 1, r"2 takes patches only, and the encoder keeps 1 prefix tokens .* or pixel_shuffle=1"),
    ],
)
def test_a_factor_that_does_not_fit_is_refused(grid, factor, num_prefix_tokens, message):
    with pytest.raises(UserError, match=rf"^pixel_shuffle: {message}$"):
        PixelShuffle(grid, factor, num_prefix_tokens)


def test_an_encoder_that_drops_patches_is_refused():
    with pytest.raises(UserError, match=r"^pixel_shuffle: 2 needs every .*; use encoder\.patch_dropout=0 or"):
        PixelShuffle((4, 4), 2, drops_patches=True)
    PixelShuffle((4, 4), 1, drops_patches=True)


def test_missing_patches_are_refused(make_patches):
    with pytest.raises(UserError, match=r"^bridge\.pixel_shuffle: 2 needs all 4 x 4 .* use encoder\.patch_dropout=0"):
        PixelShuffle((4, 4), 2)(make_patches(12, 5))
