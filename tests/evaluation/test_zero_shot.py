"""Zero-shot accuracy against plain loops; ties, languages, templates, and classes known by their concept."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.evaluation.confusion import MOST_CLASSES, confusion_counts
from mmlm.evaluation.macro_scores import given_classes
from mmlm.evaluation.zero_shot import ZeroShot, class_means, class_places, within
from mmlm.reports.items import parse_confusion
from mmlm.reports.json_file import JsonNode


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


@pytest.mark.parametrize("count", [1, 5])
def test_places_are_those_of_a_plain_sort(count):
    images, classes = unit(3000, 6), unit(11, 6)
    labels = torch.arange(3000) % 11
    order = (images @ classes.T).argsort(dim=1, descending=True)
    expected = (order[:, :count] == labels[:, None]).any(dim=1).double()
    assert torch.equal(within(class_places(images, classes, labels), count), expected)


def test_classes_of_equal_similarity_share_an_image():
    images, classes = unit(4, 6), unit(1, 6).expand(5, 6)
    places = class_places(images, classes, torch.tensor([0, 1, 4, 4]))
    assert within(places, 1).tolist() == [0.2] * 4
    assert within(places, 3).tolist() == pytest.approx([0.6] * 4)
    assert within(places, 9).tolist() == [1] * 4
    assert class_places(images[:0], classes, torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


def test_every_class_weighs_the_same():
    assert class_means(torch.tensor([1.0, 1, 1, 0]).double(), torch.tensor([7, 7, 7, 2])).tolist() == [0, 1]


def examples(texts: dict[str, tuple[str, ...]], images: int = 2) -> list[Example]:
    """Some images of each concept, each with all of the concept's captions."""
    generator = torch.Generator().manual_seed(0)
    return [
        Example(
            f"{concept}/{number}",
            torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8),
            tuple(Caption(text, "en") for text in of_concept),
            concept,
        )
        for concept, of_concept in texts.items()
        for number in range(images)
    ]


WORDS = {"cat": ("a cat",), "dog": ("a dog", "a hound"), "fish": ("a fish",)}


def test_a_split_against_a_plain_loop(make_split):
    split = make_split(examples(WORDS), languages=("en",))
    values = dict(ZeroShot(templates=("{}", "a photo of {}"))(split))
    classes = []
    for texts in WORDS.values():
        prompts = [template.format(text) for text in texts for template in ("{}", "a photo of {}")]
        mean = split.embed_texts(prompts).mean(dim=0)
        classes.append(mean / mean.norm())
    images = split.gallery.image_embedding
    nearest = [max(range(3), key=lambda k, image=image: float(image @ classes[k])) for image in images]
    right = [found == number // 2 for number, found in enumerate(nearest)]
    assert values["top1"] == pytest.approx(sum(right) / 6)
    assert values["by_class"] == pytest.approx(sum(right) / 6)
    assert values["top5"] == 1
    assert values["chance"] == pytest.approx(1 / 3)


def test_the_order_of_the_data_does_not_matter(make_split):
    shown = examples(WORDS)
    one, other = (dict(ZeroShot()(make_split(each, languages=("en",)))) for each in (shown, shown[::-1]))
    assert one == pytest.approx(other)


def test_a_class_needs_a_text_in_the_language(make_split):
    split = make_split(examples(WORDS), languages=("en", "de"))
    assert dict(ZeroShot(language="en")(split))["chance"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match=r"^no concept of the split 'hand_made' has a text"):
        list(ZeroShot(language="de")(split))


def test_templates_need_a_place():
    with pytest.raises(UserError, match=r"^templates: \[\] has no prompt"):
        ZeroShot(templates=())
    with pytest.raises(UserError, match=r"^templates: 'a photo' must have \{\} once"):
        ZeroShot(templates=("a photo",))


def test_templates_of_a_file_are_those_of_a_list(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa photo of {}\r\n\n  ein Bild: {}, schön  \n".encode())
    one = ZeroShot(templates_file=str(file))
    assert one.templates == ("a photo of {}", "ein Bild: {}, schön")
    assert one.rules == ZeroShot(one.templates).rules, "the protocol names the prompts, not where they lie"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a {}\n\na cat\n", "line 3: 'a cat' must have {} once"),
        (b"{} and {}\n", "line 1: '{} and {}' must have {} once"),
        (b"\n \n", "has no line"),
        (b"\xff{}\n", "is no UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_in_a_file_of_templates_is_one_line(tmp_path, content, line):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ArgumentError) as raised:
        ZeroShot(templates_file=str(file))
    assert f"templates_file: {file}" in str(raised.value)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_templates_are_given_once(tmp_path):
    with pytest.raises(ArgumentError, match="set beside templates"):
        ZeroShot(("a {}",), templates_file=str(tmp_path / "prompts.txt"))


def test_the_confusion_matrix_counts_what_a_plain_loop_counts(make_split):
    split = make_split(examples(WORDS, images=3), languages=("en",))
    one = ZeroShot()
    found = one.confusion(split)
    assert found is not None
    assert found.classes == ("a cat", "a dog", "a fish")
    classified = one._classified(split)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for image, label in zip(classified.images, classified.labels.tolist(), strict=True):
        expected[label, int((classified.classes @ image).argmax())] += 1
    assert torch.equal(found.counts, expected)
    assert found.counts.diagonal().sum().item() / 9 == pytest.approx(dict(one(split))["top1"])
    matrix = JsonNode({"by": "zero_shot", **found.as_json()}, "items.json")
    assert parse_confusion(matrix).counts == tuple(map(tuple, expected.tolist()))


def test_ties_are_shared_in_a_confusion_matrix():
    images, classes = unit(2, 6), unit(1, 6).expand(4, 6)
    counts = confusion_counts(given_classes(images, classes), torch.tensor([0, 3]), 4)
    assert counts.tolist() == [[0.25] * 4, [0] * 4, [0] * 4, [0.25] * 4]


def test_no_matrix_of_more_classes_than_one_can_look_at(make_split):
    words = {f"thing {n}": (f"thing {n}",) for n in range(MOST_CLASSES + 1)}
    assert ZeroShot().confusion(make_split(examples(words, images=1), languages=("en",))) is None
