"""Zero-shot accuracy against plain loops; ties, languages, templates, and classes known by their concept."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import UserError
from mmlm.evaluation.zero_shot import ZeroShot, class_means, class_places, within


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
