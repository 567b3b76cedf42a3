"""What images look like: equal pixels, and copies that are scaled, compressed or brightened, and nothing else."""

import io
import itertools

import numpy as np
import torch
from PIL import Image

from mmlm.data.images import decode_image
from mmlm.data.look import COLOUR, DISTANCE, Look, alike, equal_pixels, look_of


def photo(seed: int, size: int = 64) -> Image.Image:
    """A smooth picture of its own for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def compressed(image: Image.Image) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return decode_image(file.getvalue(), "copy")


def test_equal_pixels_are_found_in_groups():
    looks = [look_of(pixels(photo(seed))) for seed in (1, 2, 1, 3, 2, 1)]
    assert equal_pixels(looks) == [[0, 2, 5], [1, 4]]
    # The same values in another shape are another picture.
    flat = torch.full((3, 4, 6), 7, dtype=torch.uint8)
    assert look_of(flat).pixels != look_of(flat.reshape(3, 6, 4)).pixels


def test_copies_look_alike_and_others_do_not():
    images = [photo(seed) for seed in range(6)]
    copies = [pixels(images[0].resize((48, 48), Image.Resampling.LANCZOS)), compressed(images[1])]
    copies.append((pixels(images[2]).int() + 4).clamp(max=255).to(torch.uint8))
    looks = [look_of(one) for one in [*map(pixels, images), *copies]]
    assert sorted(alike(looks)) == [(0, 6), (1, 7), (2, 8)]


def test_flat_images_are_told_apart_by_their_colour():
    greys = [torch.full((3, 16, 16), level, dtype=torch.uint8) for level in (100, 105, 200)]
    assert list(alike([look_of(grey) for grey in greys])) == [(0, 1)]
    assert list(alike([])) == []


def test_all_pairs_within_the_distance_are_found_once():
    """Against every pair, by the plain definition, on gradients that differ in few bits."""
    draw = np.random.default_rng(0)
    looks = []
    for number in range(160):
        flips = draw.choice(64, draw.integers(0, 4), replace=False)
        base = (0x0123456789ABCDEF, 0xFEDCBA9876543210)[number % 2]
        gradient = base ^ sum(1 << int(place) for place in flips)
        looks.append(Look(number.to_bytes(16, "big"), gradient, (int(draw.integers(0, 20)), 9, 9)))
    looks[7] = Look(looks[9].pixels, looks[9].gradient, looks[9].colour)  # equal pixels do not merely look alike
    expected = {
        (i, j)
        for (i, one), (j, other) in itertools.combinations(enumerate(looks), 2)
        if (one.gradient ^ other.gradient).bit_count() <= DISTANCE
        and max(abs(a - b) for a, b in zip(one.colour, other.colour, strict=True)) <= COLOUR
        and one.pixels != other.pixels
    }
    found = list(alike(looks))
    assert len(found) == len(set(found)) > 100
    assert set(found) == expected
