"""Alignment, uniformity and the modality gap against plain loops; shared texts, tiles, and values left undefined."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmlm.core.batch import Caption, Example
from mmlm.evaluation.geometry import Geometry, alignment, modality_gap, uniformity


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


def squared_distance(left: list[float], right: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(left, right, strict=True))


def plain_uniformity(items: list[list[float]]) -> float:
    """Over ordered pairs, as the paper draws them."""
    count = len(items)
    pairs = [(items[i], items[j]) for i in range(count) for j in range(count) if i != j]
    return math.log(sum(math.exp(-2 * squared_distance(x, y)) for x, y in pairs) / len(pairs))


def plain_gap(images: list[list[float]], texts: list[list[float]]) -> float:
    of_images, of_texts = ([sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in (images, texts))
    return math.sqrt(squared_distance(of_images, of_texts))


@pytest.mark.parametrize("at_once", [1, 4, 5, 20, 64])
def test_uniformity_is_that_of_a_plain_loop_for_any_tile(at_once):
    items = unit(20, 6)
    assert uniformity(items, at_once) == pytest.approx(plain_uniformity(items.tolist()), rel=1e-12)


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_alignment_is_that_of_a_plain_loop_for_any_chunk(at_once):
    images, texts = unit(5, 6), unit(4, 6)
    pairs = [(0, 3), (0, 1), (1, 0), (2, 0), (4, 2)]  # several texts of an image, several images of a text
    expected = sum(squared_distance(images[i].tolist(), texts[t].tolist()) for i, t in pairs) / 5
    assert alignment(images, texts, torch.tensor(pairs), at_once) == pytest.approx(expected, rel=1e-12)


def test_the_gap_is_that_of_a_plain_loop():
    images, texts = unit(1500, 6), unit(1030, 6)  # more than one tile each
    assert modality_gap(images, texts) == pytest.approx(plain_gap(images.tolist(), texts.tolist()), rel=1e-12)


def test_the_ends_of_the_scales():
    north = torch.tensor([[1.0, 0, 0]])
    alike = north.expand(7, 3)
    every = torch.arange(7)[:, None].expand(7, 2)
    assert (uniformity(alike), alignment(alike, alike, every), modality_gap(alike, alike)) == (0, 0, 0)
    assert uniformity(torch.cat([north, -north])) == pytest.approx(-8)
    assert (alignment(alike, -alike, every), modality_gap(alike, -alike)) == (4, 2)


def test_embeddings_spread_evenly_are_as_uniform_as_theory_says():
    # On the circle the mean of exp(-2 (2 - 2 cos a)) over the angle a is exp(-4) I0(4), with the Bessel function I0.
    angle = torch.arange(3000) * (2 * math.pi / 3000)
    found = uniformity(torch.stack([angle.cos(), angle.sin()], dim=1))
    mean = math.exp(-4) * torch.special.i0(torch.tensor(4.0).double()).item()
    assert found == pytest.approx(math.log((3000 * mean - 1) / 2999), abs=1e-6)  # without each item's pair with itself


def test_neither_autocast_nor_the_order_of_the_items_shows():
    items = unit(1100, 16)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = uniformity(items)
    assert under_autocast == uniformity(items)
    assert uniformity(items.flip(0)) == pytest.approx(under_autocast, rel=1e-12)


def test_items_that_are_nearly_equal_keep_their_digits():
    # In float32 the inner products of these are all 1, and the uniformity 0.
    items = torch.tensor([[1.0, 0.0], [1.0, 1e-5], [1.0, -1e-5]])
    assert uniformity(items) == pytest.approx(-2 * (1e-10 + 1e-10 + 4e-10) / 3, rel=1e-4)


def test_the_largest_tensor_is_a_tile():
    shapes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            shapes.append(out.shape if isinstance(out, torch.Tensor) else ())
            return out

    with Watch():
        uniformity(unit(64, 4), at_once=8)
    assert max(math.prod(shape) for shape in shapes) == 64 * 4  # the embeddings themselves; N x N is 4096


def example(name: str, *texts: str, concept: str | None = None) -> Example:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    image = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
    return Example(name, image, tuple(Caption(text, "en") for text in texts), concept or name)


SHOWN = [
    example("cat/0", "a cat", "a pet"),
    example("cat/1", "a cat"),
    example("dog/0", "a dog", "a pet"),
    example("fish/0", "a fish", concept="fish"),
    example("fish/1", concept="fish"),  # its text is that of its concept
]
PAIRS = [(0, "a cat"), (0, "a pet"), (1, "a cat"), (2, "a dog"), (2, "a pet"), (3, "a fish"), (4, "a fish")]


def test_a_split_against_plain_loops(make_split):
    split = make_split(SHOWN, languages=("en",))
    values = dict(Geometry()(split))
    images = split.image_embedding.tolist()
    texts = {
        text: split.embed_texts([text], "en")[0].tolist() for _, text in PAIRS
    }  # four: those read twice count once
    aligned = sum(squared_distance(images[row], texts[text]) for row, text in PAIRS) / len(PAIRS)
    assert list(values) == list(Geometry.figures)
    assert values["alignment"] == pytest.approx(aligned, rel=1e-5)
    assert values["image_uniformity"] == pytest.approx(plain_uniformity(images), rel=1e-9)
    assert values["text_uniformity"] == pytest.approx(plain_uniformity(list(texts.values())), rel=1e-5)
    assert values["modality_gap"] == pytest.approx(plain_gap(images, list(texts.values())), rel=1e-5)


def test_the_order_of_the_data_does_not_matter(make_split):
    one, other = (dict(Geometry()(make_split(each, languages=("en",)))) for each in (SHOWN, SHOWN[::-1]))
    assert one == pytest.approx(other, rel=1e-5)


def test_what_a_split_does_not_define_is_not_yielded(make_split):
    single = make_split([example("cat/0", "a cat")], languages=("en",))
    assert set(dict(Geometry()(single))) == {"alignment", "modality_gap"}
    without_texts = make_split([example("cat/0"), example("dog/0")], languages=("en",))
    assert set(dict(Geometry()(without_texts))) == {"image_uniformity"}
