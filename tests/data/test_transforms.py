"""transforms: one path for training and evaluation, equal to plain formulas, and blind to the rest of the batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as reference

from mmlm.core.errors import UserError
from mmlm.data.augment_settings import AugmentSettings
from mmlm.data.augmentation import COLUMNS
from mmlm.data.transforms import Transform

EVERYTHING = AugmentSettings(
    scale=(0.6, 1.5),
    stretch=1.3,
    rotate=30,
    translate=0.2,
    shear=20,
    flip=0.5,
    fill=200,
    brightness=0.4,
    contrast=0.4,
    saturation=0.5,
    hue=0.2,
    grayscale=0.3,
    sharpness=0.5,
    erase=0.5,
)


def random_images(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def smooth_images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    small = [image[None].float() for image in random_images(*[(4, 4)] * len(sizes))]
    resized = [F.interpolate(s, size=size, mode="bicubic") for s, size in zip(small, sizes, strict=True)]
    return [image[0].clamp(0, 255).to(torch.uint8) for image in resized]


def draws(batch: int = 1, **columns: float) -> torch.Tensor:
    """Uniforms in the middle (no change of a symmetric setting), but for the named columns."""
    uniforms = torch.full((batch, Transform.num_uniforms), 0.5, dtype=torch.float64)
    for name, value in columns.items():
        uniforms[:, COLUMNS.index(name)] = value
    return uniforms


def random_draws(batch: int) -> torch.Tensor:
    return torch.rand(batch, Transform.num_uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_evaluation_of_twice_the_size_is_the_mean_of_four():
    images = random_images(*[(64, 64)] * 5)
    out = Transform(32, None)(images, None)
    assert out.dtype == torch.uint8
    assert torch.equal(out, F.avg_pool2d(torch.stack(images).float(), 2).round().to(torch.uint8))


def test_evaluation_at_the_size_changes_nothing_and_crops_the_centre():
    (square,) = random_images((32, 32))
    assert torch.equal(Transform(32, None)([square], None)[0], square)
    (wide,) = random_images((32, 40))
    assert torch.equal(Transform(32, None)([wide], None)[0], wide[:, :, 4:36])
    (tall,) = random_images((48, 32))
    assert torch.equal(Transform(32, None)([tall], None)[0], tall[:, 8:40])


@pytest.mark.parametrize("size", [(20, 20), (20, 31), (50, 40)])
def test_evaluation_of_other_sizes_is_a_bilinear_resize(size):
    (image,) = smooth_images(size)
    side, shorter = 32, min(size)
    top, left = (size[0] - shorter) / 2, (size[1] - shorter) / 2
    centres = (torch.arange(side) + 0.5) * shorter / side - 0.5
    expected = torch.empty(3, side, side)
    for y in range(side):
        for x in range(side):
            expected[:, y, x] = bilinear(image, top + centres[y].item(), left + centres[x].item(), 255, clamp=True)
    out = Transform(side, None)([image], None)[0].float()
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert (out - expected)[inner].abs().max() <= 0.51


def test_large_images_are_antialiased():
    board = (torch.arange(512)[:, None] + torch.arange(512)[None, :]) % 2 * 255
    out = Transform(32, None)([board.to(torch.uint8).expand(3, -1, -1)], None)
    assert (out.int() - 128).abs().max() <= 1


def test_large_images_agree_with_an_antialiased_resize():
    (image,) = smooth_images((300, 400))
    expected = reference.center_crop(reference.resize(image, [32], antialias=True), [32, 32])
    assert (Transform(32, None)([image], None)[0].float() - expected.float()).abs().mean() < 1.5


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (41, 33), (90, 200)])
@pytest.mark.parametrize("fill", [255, 0])
def test_identity_settings_give_exactly_the_evaluation_image(size, fill):
    images = random_images(*[size] * 8)
    evaluated = Transform(32, EVERYTHING)(images, None)
    assert torch.equal(Transform(32, AugmentSettings(fill=fill))(images, random_draws(8)), evaluated)
    assert torch.equal(Transform(32, None)(images, random_draws(8)), evaluated)


def test_middle_draws_give_exactly_the_evaluation_image():
    images = random_images(*[(64, 64)] * 4)
    settings = AugmentSettings(
        scale=(0.5, 2.0), stretch=2, rotate=40, translate=0.3, shear=30, brightness=0.5, contrast=0.5, saturation=0.5,
        hue=0.5, sharpness=1.0, flip=0.4, grayscale=0.4, erase=0.4,
    )  # fmt: skip
    assert torch.equal(Transform(32, settings)(images, draws(4)), Transform(32, None)(images, None))


def bilinear(image: torch.Tensor, y: float, x: float, fill: float, clamp: bool = False) -> torch.Tensor:
    total = torch.zeros(3)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            inside = 0 <= row < image.shape[1] and 0 <= column < image.shape[2]
            if clamp:
                row_, column_ = min(max(row, 0), image.shape[1] - 1), min(max(column, 0), image.shape[2] - 1)
                total += weight * image[:, row_, column_].float()
            else:
                total += weight * (image[:, row, column].float() if inside else torch.full((3,), float(fill)))
    return total


@pytest.mark.parametrize("size", [(16, 16), (12, 15)])
def test_geometry_against_a_plain_loop(size):
    settings = AugmentSettings(scale=(0.5, 2.0), stretch=1.5, rotate=60, translate=0.3, shear=25, flip=0.5, fill=180)
    (image,) = random_images(size)
    side = 8
    for row in random_draws(6):
        draw = dict(zip(COLUMNS, row.tolist(), strict=True))
        scale = math.exp(math.log(0.5) + draw["scale"] * math.log(4))
        stretch = 1.5 ** (draw["stretch"] - 0.5)
        angle = math.radians(60 * (2 * draw["rotate"] - 1))
        shear = math.tan(math.radians(25 * (2 * draw["shear"] - 1)))
        mirror = -1.0 if draw["flip"] < 0.5 else 1.0
        forward = (
            torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            @ torch.tensor([[1.0, shear], [0.0, 1.0]])
            @ torch.diag(torch.tensor([mirror * scale * stretch, scale / stretch]))
        )
        shift = torch.tensor([0.6 * (2 * draw["translate_x"] - 1), 0.6 * (2 * draw["translate_y"] - 1)])
        out = Transform(side, settings)([image], row[None])[0].float()
        for y in range(side):
            for x in range(side):
                view = torch.tensor([(2 * x + 1) / side - 1, (2 * y + 1) / side - 1])
                source_x, source_y = (torch.linalg.inv(forward) @ (view - shift)).tolist()
                half = min(size) / 2
                at = source_y * half + size[0] / 2 - 0.5, source_x * half + size[1] / 2 - 0.5
                assert (out[:, y, x] - bilinear(image, *at, fill=180)).abs().max() <= 0.51


def test_each_geometric_setting_does_what_its_name_says():
    (image,) = random_images((16, 16))

    def varied(settings: AugmentSettings, **columns: float) -> torch.Tensor:
        return Transform(16, settings)([image], draws(**columns))[0]

    assert torch.equal(varied(AugmentSettings(flip=1.0)), image.flip(-1))
    assert torch.equal(varied(AugmentSettings(rotate=90), rotate=1.0), image.rot90(-1, (1, 2)))
    shifted = varied(AugmentSettings(translate=0.25, fill=9), translate_x=1.0)
    assert torch.equal(shifted[:, :, 4:], image[:, :, :12])
    assert (shifted[:, :, :4] == 9).all()
    smaller = varied(AugmentSettings(scale=(0.5, 0.5), fill=7))
    assert torch.equal(smaller[:, 4:12, 4:12], F.avg_pool2d(image[None].float(), 2)[0].round().to(torch.uint8))
    assert (smaller[:, :3] == 7).all()
    larger = varied(AugmentSettings(scale=(2.0, 2.0)))
    middle = F.interpolate(image[None].float(), scale_factor=2, mode="bilinear")[0, :, 8:24, 8:24]
    assert (larger.float() - middle).abs().max() <= 0.51


def test_scale_is_log_uniform_between_its_ends():
    (image,) = random_images((16, 16))
    settings = AugmentSettings(scale=(0.5, 2.0))
    for draw, size in ((0.0, 0.5), (0.25, 0.5**0.5), (0.5, 1.0), (1.0, 2.0)):
        fixed = Transform(16, AugmentSettings(scale=(size, size)))([image], draws())
        assert (Transform(16, settings)([image], draws(scale=draw)).int() - fixed.int()).abs().max() <= 1


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
        ("sharpness", None),
    ],
)
def test_colour_factors_against_torchvision(name, adjust, draw):
    images = torch.stack(random_images(*[(16, 16)] * 4))
    out = Transform(16, AugmentSettings(**{name: 0.8}))(list(images), draws(4, **{name: draw}))
    factor = 1 + 0.8 * (2 * draw - 1)
    if adjust is None:
        padded = F.pad(images.float(), (1, 1, 1, 1), value=math.nan)
        blurred = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).nanmean(-1)
        expected = (factor * images + (1 - factor) * blurred).clamp(0, 255)
    else:
        expected = adjust(images, factor).float()
    assert (out.float() - expected).abs().max() <= 2


def test_grayscale():
    images = torch.stack(random_images(*[(16, 16)] * 4))
    out = Transform(16, AugmentSettings(grayscale=0.5))(list(images), draws(4, grayscale=0.49))
    assert (out.float() - reference.rgb_to_grayscale(images, 3).float()).abs().max() <= 1
    kept = Transform(16, AugmentSettings(grayscale=0.5))(list(images), draws(4, grayscale=0.5))
    assert torch.equal(kept, images)


def test_hue_keeps_greys_and_brightness_and_turns_colours():
    grey = torch.arange(0, 256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    settings = AugmentSettings(hue=0.5)
    for draw in (0.0, 0.2, 0.7):
        assert torch.equal(Transform(16, settings)([grey], draws(hue=draw))[0], grey)
    # Colours far from the limits: their luma stays, and half a turn mirrors the chroma.
    colours = torch.randint(110, 146, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    luma = torch.tensor([0.299, 0.587, 0.114])
    for draw in (0.1, 0.25, 0.8):
        turned = Transform(16, settings)([colours], draws(hue=draw))[0]
        difference = torch.einsum("c,chw->hw", luma, turned.float() - colours.float())
        assert difference.abs().max() < 1
        assert not torch.equal(turned, colours)
    grey_of = torch.einsum("c,chw->hw", luma, colours.float())
    half_turn = Transform(16, settings)([colours], draws(hue=1.0))[0].float()
    assert (half_turn - (2 * grey_of - colours.float())).abs().max() <= 1
    # A third of a turn takes red to green and back to blue, as HSV's does.
    red = torch.tensor([160, 110, 110], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    for draw, turn in ((1.0, 1 / 3), (0.0, -1 / 3)):
        turned = Transform(16, AugmentSettings(hue=1 / 3))([red], draws(hue=draw))[0, :, 0, 0]
        assert turned.argmax() == reference.adjust_hue(red, turn)[:, 0, 0].argmax()


def test_erase_fills_one_box_of_the_asked_area():
    (image,) = random_images((64, 64))
    settings = AugmentSettings(erase=0.5, erase_area=(0.1, 0.1), fill=77)
    whole = Transform(64, settings)([image], draws(erase=0.5))[0]
    assert torch.equal(whole, image)
    out = Transform(64, settings)([image], draws(erase=0.49, erase_shape=1.0))[0]
    erased = (out == 77).all(0)
    assert erased.float().mean() == pytest.approx(0.1, abs=0.01)
    rows, columns = erased.any(1).sum().item(), erased.any(0).sum().item()
    assert rows * columns == erased.sum()
    assert columns / rows == pytest.approx(3, abs=0.3)
    assert torch.equal(out[:, ~erased], image[:, ~erased])


@pytest.mark.parametrize("settings", [None, EVERYTHING])
def test_an_image_does_not_depend_on_its_batch(settings):
    images = random_images((64, 64), (32, 32), (64, 64), (50, 80), (200, 150), (64, 64), (50, 80))
    before = [image.clone() for image in images]
    transform = Transform(32, settings)
    uniforms = None if settings is None else random_draws(7)
    together = transform(images, uniforms)
    for row, image in enumerate(images):
        alone = transform([image], None if uniforms is None else uniforms[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert all(torch.equal(image, kept) for image, kept in zip(images, before, strict=True))


def test_the_result_does_not_depend_on_the_number_of_threads():
    images = random_images(*[(256, 256)] * 3)
    transform = Transform(224, EVERYTHING)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = transform(images, random_draws(3))
        torch.set_num_threads(2)
        assert torch.equal(transform(images, random_draws(3)), one)
    finally:
        torch.set_num_threads(threads)


def test_draws_matter_and_are_the_only_randomness():
    images = random_images(*[(64, 64)] * 6)
    transform = Transform(32, EVERYTHING)
    state = torch.get_rng_state()
    first = transform(images, random_draws(6))
    assert torch.equal(transform(images, random_draws(6)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(transform(images, random_draws(6).flip(0)), first)


def test_no_images():
    out = Transform(32, EVERYTHING)([], random_draws(0))
    assert out.shape == (0, 3, 32, 32)
    assert out.dtype == torch.uint8


def test_wrong_uniforms_are_a_bug():
    with pytest.raises(ValueError, match="num_uniforms"):
        Transform(32, EVERYTHING)(random_images((8, 8)), torch.rand(2, Transform.num_uniforms))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (1.2, 0.8)),
        ("stretch", 0.9),
        ("rotate", -1),
        ("rotate", 181),
        ("translate", 1.5),
        ("shear", 90),
        ("flip", 1.1),
        ("fill", 256),
        ("brightness", -0.1),
        ("hue", 0.6),
        ("grayscale", 2),
        ("erase_area", (0.0, 0.5)),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(UserError) as error:
        AugmentSettings(**{name: value})
    assert str(error.value).startswith(f"{name}: {value} must be ")


def test_image_size_out_of_range():
    with pytest.raises(UserError, match=r"^data\.image_size: 0 must be at least 1 pixel"):
        Transform(0, None)


# Frames, bends and outlines


def drawing(top: int, left: int, height: int, width: int, ground: int = 255) -> torch.Tensor:
    """A black box on a plain ground, uint8[3, 64, 64]."""
    image = torch.full((3, 64, 64), ground, dtype=torch.uint8)
    image[:, top : top + height, left : left + width] = 0
    return image


def test_trim_lays_the_view_around_the_drawing_wherever_it_is():
    transform = Transform(32, None, trim=0.0)
    framed = transform([drawing(0, 0, 16, 16), drawing(40, 30, 16, 16), drawing(0, 0, 64, 64)], None)
    # The outermost row of pixels is interpolated with the ground.
    assert (framed[:, :, 1:-1, 1:-1] == 0).all()
    tall = transform([drawing(10, 20, 32, 8)], None)[0]
    assert (tall[:, :, 14:18] == 0).all()
    assert (tall[:, :, :11] == 255).all()
    assert (tall[:, :, 21:] == 255).all()


def test_trim_leaves_a_margin_and_a_blank_picture_alone():
    framed = Transform(32, None, trim=0.5)([drawing(8, 8, 16, 16)], None)[0]
    assert (framed[:, 6:26, 6:26] == 0).all()
    assert (framed[:, :5] == 255).all()
    assert (framed[:, 27:] == 255).all()
    blank = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    assert (Transform(32, None, trim=0.1)([blank], None) == 255).all()


def test_trim_takes_the_fill_as_the_ground():
    settings = AugmentSettings(fill=0)
    white_on_black = 255 - drawing(4, 40, 16, 16)
    uniforms = torch.full((1, Transform.num_uniforms), 0.5, dtype=torch.float64)
    assert (Transform(32, settings, trim=0.0)([white_on_black], uniforms)[:, :, 1:-1, 1:-1] == 255).all()


def test_trim_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"^trim: 1\.5 must be at least 0 and below 1"):
        Transform(32, None, trim=1.5)


def test_elastic_moves_points_by_at_most_its_fraction_and_spares_flat_pictures():
    settings = AugmentSettings(elastic=0.05)
    uniforms = torch.rand(4, Transform.num_uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    assert (Transform(32, settings)([flat] * 4, uniforms) == 255).all()
    bent = Transform(32, settings)([drawing(16, 16, 32, 32)] * 4, uniforms)
    assert (bent[:, :, 11:21, 11:21] == 0).all()
    assert (bent[:, :, :5] == 255).all()
    assert not torch.equal(bent[0], bent[1])
    still = torch.full((1, Transform.num_uniforms), 0.5, dtype=torch.float64)
    assert torch.equal(
        Transform(32, settings)([drawing(9, 9, 20, 20)], still), Transform(32, None)([drawing(9, 9, 20, 20)], None)
    )


def test_outline_darkens_edges_only():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    image[:, 8:24, 8:24] = 200
    uniforms = torch.full((2, Transform.num_uniforms), 0.5, dtype=torch.float64)
    uniforms[1, COLUMNS.index("outline")] = 0.9
    drawn, left_alone = Transform(32, AugmentSettings(outline=0.6))([image, image], uniforms)
    assert torch.equal(left_alone, image)
    assert (drawn[:, 10:22, 10:22] == 200).all()
    assert (drawn[:, :7] == 255).all()
    # strength 2 * 0.5 = 1: 255 - (255 - 200) outside of the edge, 200 - 55 inside of it
    assert (drawn[:, 7, 10:22] == 200).all()
    assert (drawn[:, 8, 10:22] == 145).all()
