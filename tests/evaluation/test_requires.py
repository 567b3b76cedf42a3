"""What evaluators need of a split is known from its texts: asked before anything is encoded, in one line."""

import math

import pytest
import torch

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import UserError
from mmlm.data.sources import texts_of
from mmlm.data.tokenizer import describe_cut
from mmlm.evaluation.evaluators import CaptionLoss, CaptionQuality, ImageUse, Retrieval
from mmlm.evaluation.requires import (
    Requires,
    SplitTexts,
    check_languages,
    check_start,
    find_lacking,
    required_by,
)
from mmlm.evaluation.retrieval import recall_at, score_retrieval
from mmlm.evaluation.zero_shot import ZeroShot
from tests.evaluation.hand_made import ExampleList, fitted_tokenizer

NAMES = ("cat", "dog", "bird", "fish")


def example(name: str, *texts: str, concept: str | None = None, language: str | None = None, image: bool = True):
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    pixels = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
    return Example(name, pixels if image else None, tuple(Caption(text, language) for text in texts), concept)


PLAIN = [example(name, f"a {name}") for name in NAMES]
SILENT = example("silent.png")
ALONE = example("line 9", "a text alone", image=False)
SPLITS = {
    "plain": PLAIN,
    "an image without captions": [*PLAIN, SILENT],
    "only images without captions": [SILENT],
    "a text alone": [*PLAIN, ALONE],
    "texts alone": [ALONE],
    "an image without captions and a text alone": [SILENT, *PLAIN, ALONE],
    "a text alone with the words of an image": [*PLAIN, example("line 9", "a cat", image=False)],
    "an image whose concept has a text alone": [
        *PLAIN,
        example("silent.png", concept="cow"),
        example("line 9", "a cow", concept="cow", image=False),
    ],
    "one image": PLAIN[:1],
    "two images": PLAIN[:2],
    "one concept": [example(name, f"a {name}", concept="animal") for name in NAMES],
    "a concept in most": [*PLAIN[:1], *(example(name, f"a {name}", concept="animal") for name in NAMES[1:])],
    "a concept in half": [*PLAIN[:2], *(example(name, f"a {name}", concept="animal") for name in NAMES[2:])],
    "captions in English": [example(name, f"a {name}", language="en") for name in NAMES],
    "some captions in English": [*PLAIN, example("cow", "a cow", language="en")],
    "one image with a caption": [PLAIN[0], SILENT, example("still.png")],
}


def texts(examples) -> SplitTexts:
    return SplitTexts("data.validation.val", tuple(texts_of(ExampleList(examples))))


@pytest.mark.parametrize("language", [None, "en"])
@pytest.mark.parametrize("name", SPLITS)
def test_what_is_required_is_enough_and_no_more(make_split, name, language):
    examples = SPLITS[name]
    evaluators = {
        "loss": CaptionLoss(),
        "retrieval": Retrieval(),
        "captioning": CaptionQuality(language),
        "use": ImageUse(),
        "zero_shot": ZeroShot(language=language),
    }
    if not any(one.captions for one in examples):
        assert find_lacking({"val": texts(examples)}, evaluators).refused
        return
    split = make_split(examples, languages=("en",))
    for key, evaluator in evaluators.items():
        lacking = texts(examples).lacking(required_by(evaluator))
        if lacking is None:
            assert all(math.isfinite(value) for _, value in evaluator(split)), key
        else:
            try:
                found = dict(evaluator(split))
            except (UserError, ValueError):
                continue
            # What could be computed would say nothing: there is nothing to confuse a single concept with, no image.
            trivial = found.get("image_to_text/R@1", found.get("top1")) == 1
            assert trivial or "holds no image" in lacking, (key, found)


def test_retrieval_is_among_images_and_texts_that_belong_together(make_split):
    """The scores of a split with odd examples are those of the split without them."""
    odd = make_split([SILENT, *PLAIN[:2], ALONE, *PLAIN[2:]], batch_size=2)
    gallery = odd.gallery
    assert (len(gallery.image_embedding), len(gallery.texts)) == (5, 5)
    rows = torch.tensor([1, 2, 3, 4])
    columns = torch.tensor([gallery.texts.index(f"a {name}") for name in NAMES])
    pairs = torch.arange(4)[:, None].expand(4, 2)
    expected = score_retrieval(gallery.image_embedding[rows], gallery.text_embedding[columns], pairs)
    found = dict(Retrieval()(odd))
    for way, ranked in (("image_to_text", expected.image_to_text), ("text_to_image", expected.text_to_image)):
        assert found[f"{way}/R@1"] == recall_at(ranked.best, 1)
        assert found[f"{way}/mAP"] == ranked.average_precision.mean().item()
    assert (found["image_to_text/queries"], found["text_to_image/queries"]) == (4, 4)


def test_lines_name_split_example_and_evaluators():
    evaluators = {"loss": CaptionLoss(), "retrieval": Retrieval(), "captioning": CaptionQuality("en"), "own": object()}
    mixed = [SILENT, example("cat", "a cat", language="en"), example("dog", "a dog"), ALONE]
    found = find_lacking({"val": texts(mixed), "plain": texts(SPLITS["captions in English"])}, evaluators)
    assert found.accepted().lines == (
        "val: 1 of 3 images has no caption (first: 'silent.png'); not scored by loss, retrieval",
        "val: 2 of 3 images have no caption in 'en' (first: 'silent.png'); not scored by captioning",
        "val: 1 of 4 examples is text alone (first: 'line 9'); not scored by retrieval, captioning",
    )
    assert found.without == {"val": {}, "plain": {}}


def test_a_class_without_an_image_or_without_a_text_is_told_by_name():
    split = [
        example("1.png", "a cat", concept="cat", language="en"),
        example("2.png", "a dog", concept="dog", language="en"),
        example("3.png", concept="cow"),
        example("line 9", "a bird", concept="bird", language="en", image=False),
    ]
    evaluators = {"retrieval": Retrieval(), "zero_shot": ZeroShot(language="en")}
    (line,) = (line for line in find_lacking({"val": texts(split)}, evaluators).lines if "no class" in line)
    assert line == (
        "val: 1 concept with no text in 'en' ('cow') and 1 concept with no image ('bird'): "
        "no class of evaluators.zero_shot"
    )
    assert not find_lacking({"val": texts(split[:2])}, evaluators).lines


@pytest.mark.parametrize(
    ("name", "requires", "message"),
    [
        ("texts alone", Requires(), "holds no image, only texts; evaluate on images with captions"),
        ("only images without captions", Requires(), "has no caption to score: none of its 1 image has one (first: 's"),
        ("plain", Requires("en"), "has no image with a caption in the language 'en' (first: 'cat'; captions are in no"),
        ("captions in English", Requires("de"), "captions are in 'en'); set data.language to theirs, or"),
        ("one image", Requires(concepts=2), "has 1 image with a caption, of 1 concept (first: 'cat'), and 2 concepts"),
        ("a concept in most", Requires(largest_share=0.5), "shows the concept 'animal' in 3 of 4 images (first: 'dog'"),
        ("a concept in half", Requires(largest_share=0.5), None),
    ],
)
def test_what_a_split_lacks_in_words(name, requires, message):
    lacking = texts(SPLITS[name]).lacking(requires)
    assert lacking is None if message is None else message in str(lacking)


def test_a_split_is_refused_only_if_nobody_can_score_it():
    one = {"val": texts(SPLITS["one image"])}
    some = find_lacking(one, {"retrieval": Retrieval(), "loss": CaptionLoss()}).accepted()
    assert list(some.without["val"]) == ["retrieval"]
    assert some.lines[0].startswith("val: without evaluators.retrieval: it has 1 image with a caption")
    assert find_lacking(one, {"retrieval": Retrieval(), "own": object()}).accepted().lines, "who says nothing is tried"
    with pytest.raises(UserError, match=r"^data\.validation\.val: it has 1 image with a caption"):
        find_lacking(one, {"retrieval": Retrieval()}).accepted()
    assert find_lacking({"val": texts(SPLITS["texts alone"])}, {}).accepted().lines == (), "nothing is asked"


def test_languages():
    tokenizer = fitted_tokenizer(PLAIN, languages=("en", "de"))
    check_languages(texts(SPLITS["some captions in English"]), tokenizer)
    with pytest.raises(UserError, match=r"^data\.validation\.val: 'cow': a caption's language is 'fr', but"):
        check_languages(texts([*PLAIN, example("cow", "une vache", language="fr")]), tokenizer)
    plain, english = [Caption("a cat")], [Caption("a cat", "en")]
    for language, captions in ((None, plain), ("en", english), ("en", plain + english), ("de", [])):
        check_start(language, captions, tokenizer)
    with pytest.raises(UserError, match=r"^data\.language: 'en', and all 1 captions .* no language: .*; set .*=null"):
        check_start("en", plain, tokenizer)
    with pytest.raises(UserError, match=r"^data\.language: null, and all 2 captions .* in 'en': .*; set .*guage=en,"):
        check_start(None, english * 2, tokenizer)


def test_answers_are_no_captions():
    answers = (Caption("yes", source="is it a cat?"),)
    split = SplitTexts("data.validation.val", (ExampleTexts("cat", answers, None, True),))
    lacking = split.lacking(Requires())
    assert lacking is not None
    assert lacking.startswith("has no caption to score")
    assert split.lacking(Requires(answers=True)) is None


def test_captions_that_lose_their_tail_are_counted():
    tokenizer = fitted_tokenizer(PLAIN)
    most = len(tokenizer.encode("a cat", None, 99))
    captions = [Caption("a cat"), Caption("a cat and a dog"), Caption("a cat")]
    assert describe_cut(tokenizer, captions[:1], most) is None
    told = describe_cut(tokenizer, captions, most)
    assert told == f"1 of 3 captions are longer than data.max_tokens={most} and lose their tail"
    answers = [Caption("a", source="a cat"), Caption("a cat", source="a"), Caption("a", source="")]
    assert describe_cut(tokenizer, answers[2:], most) is None
    told = describe_cut(tokenizer, answers, most)
    assert told == (
        f"1 of 3 captions are longer than data.max_tokens={most} and lose their tail; 1 of 3 captions are longer than "
        f"data.max_tokens={most} with what they answer, which loses its earliest turns and then the tail of its source"
    )


def test_a_source_that_lists_no_texts_is_read():
    assert list(texts_of(ExampleList([PLAIN[0], ALONE]))) == [
        ExampleTexts("cat", (Caption("a cat"),), None, True),
        ExampleTexts("line 9", (Caption("a text alone"),), None, False),
    ]
