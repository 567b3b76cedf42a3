"""Cutting images into patches, against loops."""

import math

import pytest
import torch

from mmlm.objectives.shared.masked_patches import grid_positions, other_patches, patches_of, statistics_of


def pixels(count: int = 2, height: int = 6, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def test_patches_stand_row_by_row_with_their_colours_together():
    images = pixels()
    patches = patches_of(images, (3, 2))
    assert patches.shape == (2, 2 * 4, 3 * 2 * 3)
    for b in range(2):
        for row in range(2):
            for column in range(4):
                cut = images[b, :, row * 3 : row * 3 + 3, column * 2 : column * 2 + 2]
                expected = [int(cut[colour, y, x]) for y in range(3) for x in range(2) for colour in range(3)]
                assert patches[b, row * 4 + column].tolist() == expected
    assert patches_of(pixels(0), (3, 2)).shape == (0, 8, 18)


def test_statistics_are_those_of_the_pixels_as_floats():
    patches = patches_of(pixels(), (3, 4))
    mean, variance = statistics_of(patches)
    floats = patches.double() / 255
    torch.testing.assert_close(mean, floats.mean(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, floats.var(-1, unbiased=False), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_one_colour_has_no_variance_at_all(value):
    mean, variance = statistics_of(torch.full((1, 1, 3000), value, dtype=torch.uint8))
    assert (mean.item(), variance.item()) == (value / 255, 0.0)


def test_the_others_are_all_the_others_in_order():
    kept = torch.tensor([[0, 3], [1, 2], [2, 4]])
    assert other_patches(kept, 5).tolist() == [[1, 2, 4], [0, 3, 4], [0, 1, 3]]
    assert other_patches(torch.empty(0, 2, dtype=torch.int64), 5).shape == (0, 3)


def test_positions_are_sines_and_cosines_of_row_and_column():
    positions = grid_positions((2, 3), 8)
    assert positions.shape == (6, 8)
    for row in range(2):
        for column in range(3):
            angles = [[place * 10_000 ** (-i / 2) for i in (0, 1)] for place in (row, column)]
            waves = [[wave(angle) for angle in one] for one in angles for wave in (math.sin, math.cos)]
            expected = [value for one in waves for value in one]
            torch.testing.assert_close(positions[row * 3 + column], torch.tensor(expected))
