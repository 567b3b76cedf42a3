"""Nearest-neighbour accuracy against plain loops; ties, images that take no part, and what does not matter."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError
from mmlm.evaluation.neighbours import Neighbours, neighbour_votes, shares_right


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


def plain_votes(images: torch.Tensor, labels: list[int], row: int, k: int, temperature: float) -> list[float]:
    """The vote for each concept where no two images are equally near."""
    others = [other for other in range(len(images)) if other != row]
    similar = {other: float(images[row].double() @ images[other].double()) for other in others}
    votes = [0.0] * (max(labels) + 1)
    for other in sorted(others, key=lambda other: -similar[other])[:k]:
        votes[labels[other]] += math.exp(similar[other] / temperature)
    return votes


@pytest.mark.parametrize("temperature", [0.05, 1.0, math.inf])
@pytest.mark.parametrize("k", [1, 4, 39, 1000])
def test_votes_and_accuracy_are_those_of_a_plain_loop(k, temperature):
    images, labels = unit(40, 5), torch.arange(40) % 3
    rows = torch.arange(40)
    votes = neighbour_votes(images, labels, rows, k, temperature)
    right = []
    for row in range(40):
        expected = plain_votes(images, labels.tolist(), row, k, temperature)
        nearest = max(float(images[row] @ images[other]) for other in range(40) if other != row)
        assert (votes[row] * math.exp(nearest / temperature)).tolist() == pytest.approx(expected, rel=1e-4)
        winners = [concept for concept in range(3) if expected[concept] > max(expected) * (1 - 1e-5)]
        right.append((int(labels[row]) in winners) / len(winners))
    assert shares_right(images, labels, rows, k, temperature).tolist() == pytest.approx(right)


def test_neither_the_tiles_nor_the_choice_of_rows_change_anything():
    images, labels, rows = unit(50, 4), torch.arange(50) % 4, torch.arange(50)
    whole = shares_right(images, labels, rows, 5, 0.07)
    assert 0 < whole.mean() < 1
    for at_once in (1, 130, 700):
        assert torch.equal(shares_right(images, labels, rows, 5, 0.07, at_once), whole)
    some = torch.tensor([7, 3, 49])
    assert torch.equal(shares_right(images, labels, some, 5, 0.07), whole[some])
    assert shares_right(images, labels, rows[:0], 5, 0.07).shape == (0,)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_a_tie_for_the_last_places_is_the_mean_over_all_ways_to_fill_them(k):
    # From the first image: one image nearest, four copies as near as each other, one far away.
    images = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], *[[1, 0.5]] * 4, [-1, 1]]), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 2])
    weight = torch.exp((images @ images[0]).double() / 0.3).tolist()
    places = min(max(k - 1, 0), 4)
    ways = list(combinations([2, 3, 4, 5], places))
    expected = [0.0, 0.0, 0.0]
    for way in ways:
        for voter in [1, *way] + [6] * (k == 6):
            expected[labels[voter]] += weight[voter] / len(ways)
    votes = neighbour_votes(images, labels, torch.tensor([0]), k, 0.3)[0] * weight[1]
    assert votes.tolist() == pytest.approx(expected, rel=1e-5)


def test_copies_are_as_near_as_each_other_whatever_rounding_says():
    images = unit(2, 64)[[0, 1, 1, 1, 1]]
    images[2:] += torch.tensor([0, 1e-8, -1e-8])[:, None]  # less than another batch size moves an embedding
    votes = neighbour_votes(images, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0]), 1, 0.07)
    assert votes[0].tolist() == pytest.approx([0.25, 0.75], rel=1e-4)
    # Two of them, of two concepts, share the image.
    right = shares_right(images[:3], torch.tensor([0, 0, 1]), torch.tensor([0]), 2, 1e-3)
    assert right.tolist() == [0.5]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 3, 2), [1.0] * 5 + [0.0] * 5), ((3, 2), [0.5] * 3 + [0.0] * 2), ((3, 3), [0.0] * 6)],
)
@pytest.mark.parametrize("k", [1, 4, 100])
def test_a_model_that_embeds_everything_alike_guesses_the_most_frequent_of_the_others(k, counts, expected):
    labels = torch.repeat_interleave(torch.tensor(counts))
    images = unit(1, 6).expand(len(labels), 6)
    assert shares_right(images, labels, torch.arange(len(labels)), k, 0.07).tolist() == expected


def test_at_a_low_temperature_the_nearest_decides():
    images, labels, rows = unit(30, 4), torch.arange(30) % 3, torch.arange(30)
    nearest = (images @ images.T).fill_diagonal_(-2).argmax(dim=1)
    expected = (labels[nearest] == labels).double()
    assert torch.equal(shares_right(images, labels, rows, 29, 1e-12), expected)


def test_an_embedding_that_is_not_a_number_is_not_hidden():
    images = unit(6, 4)
    images[2] = math.nan
    assert shares_right(images, torch.arange(6) % 2, torch.arange(6), 2, 0.07).isnan().all()


def examples(concepts: list[str | None]) -> list[Example]:
    """A random image of each concept."""
    generator = torch.Generator().manual_seed(0)
    return [
        Example(
            f"image {number}",
            torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8),
            (Caption(f"image {number}", "en"),),
            concept,
        )
        for number, concept in enumerate(concepts)
    ]


SHOWN: list[str | None] = ["cat", None, "dog", "cat", "fish", "dog", "cat", None, "bird", "bird"]
"""The fish is alone, and so are the images without a concept."""


def test_a_split_against_a_plain_loop(make_split):
    split = make_split(examples(SHOWN), languages=("en",))
    values = dict(Neighbours(k=2, temperature=0.1)(split))
    rows = [row for row, concept in enumerate(SHOWN) if concept in ("cat", "dog", "bird")]
    labels = [["cat", "dog", "bird"].index(SHOWN[row] or "") for row in rows]
    images = split.image_embedding[rows]
    right: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for place, label in enumerate(labels):
        votes = plain_votes(images, labels, place, 2, 0.1)
        right[label].append(votes[label] == max(votes))
    ends = {name: values.pop(name) for name in list(values) if name.endswith(("/low", "/high"))}
    assert ends["top1/low"] < values["top1"] < ends["top1/high"]
    assert len(ends) == 4
    assert values == pytest.approx(
        {
            "top1": sum(sum(of_concept) for of_concept in right.values()) / 7,
            "by_concept": sum(sum(of_concept) / len(of_concept) for of_concept in right.values()) / 3,
            "chance": 3 / 7,
            "chance_by_concept": 1 / 3,
            "images": 7,
        }
    )


def test_the_order_of_the_data_does_not_matter(make_split):
    shown = examples(SHOWN)
    shown[2:2] = [Example("copy of 0", shown[0].image, shown[0].captions, "bird")]  # a tie for somebody's last place
    one, other = (dict(Neighbours(k=1)(make_split(each, languages=("en",)))) for each in (shown, shown[::-1]))
    assert one == pytest.approx(other)


def test_a_split_without_two_images_of_a_concept_says_so_and_no_more(make_split):
    split = make_split(examples(["cat", "dog", None, None]), languages=("en",))
    assert dict(Neighbours()(split)) == {"images": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: 0 must be at least 1"),
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"temperature": math.nan}, "temperature: nan must be above 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Neighbours(**arguments)
