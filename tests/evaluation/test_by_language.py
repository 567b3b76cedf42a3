"""Scores of each language are those of a split that has no captions in any other."""

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError
from mmlm.evaluation.by_language import ByLanguage
from mmlm.evaluation.evaluate import evaluation_figures
from mmlm.evaluation.evaluators import Retrieval
from mmlm.evaluation.split import EncodedSplit

WORDS = {
    "en": ("dog", "cat", "cow", "taxi"),
    "de": ("Hund", "Katze", "Kuh", "Taxi"),
    "zh": ("狗", "猫", "牛", "出租车"),
}


@pytest.fixture
def examples() -> list[Example]:
    """Two images of each of four things, named in three languages; of the cow, the Chinese name is missing."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in range(8):
        names = {language: words[row % 4] for language, words in WORDS.items()}
        names = {lang: name for lang, name in names.items() if (lang, name) != ("zh", "牛")}
        pixels = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
        captions = tuple(Caption(name, language) for language, name in names.items())
        found.append(Example(f"{row}", pixels, captions, f"thing {row % 4}"))
    return found


@pytest.fixture
def split(make_split, examples) -> EncodedSplit:
    return make_split(examples, languages=tuple(WORDS))


def test_a_language_is_scored_as_if_it_were_alone(split):
    scores = dict(ByLanguage([*WORDS, "sw"])(split))
    assert scores["languages"] == 3
    assert not any(name.startswith("sw/") for name in scores), "the split has no caption in it"
    for language in WORDS:
        rows = [row for row, caption in enumerate(split.captions) if caption.language == language]
        # By hand: of each image, the share of the names of other things that are no nearer than its own.
        gallery = split.gallery_of(rows)
        assert set(gallery.texts) == {caption.text for caption in split.captions if caption.language == language}
        paired = gallery.paired()
        nearest = (paired.image_embedding @ paired.text_embedding.T).argmax(1)
        own = {(image, text) for image, text in paired.pairs.tolist()}
        right = sum((image, text) in own for image, text in enumerate(nearest.tolist())) / len(nearest)
        assert scores[f"{language}/image_to_text/R@1"] == pytest.approx(right)
        assert 0 <= scores[f"{language}/exact"] <= 1
    assert len(split.gallery_of([r for r, c in enumerate(split.captions) if c.language == "zh"]).paired().texts) == 3


def test_all_captions_are_the_gallery(split):
    assert dict(Retrieval()(split))["text_to_image/R@10"] == 1
    assert split.gallery.texts == split.gallery_of(range(len(split.captions))).texts


def test_every_value_is_declared(split):
    by_language = ByLanguage(["en", "zh"])
    figures = evaluation_figures({"by_language": by_language})
    scores = dict(by_language(split))
    undeclared = {f"by_language/{name}" for name in scores} - figures.keys()
    told = {
        name
        for figure in figures.values()
        for name in (figure.low, figure.high, figure.chance, figure.count, figure.among)
    }
    assert undeclared <= told
    assert figures["by_language/zh/exact"].shown == ("table",)


def test_without_captions_no_decoder_is_needed(split):
    towers = ByLanguage(["en"], captions=False)
    assert not towers.needs_decoder
    assert {name.split("/")[1] for name, _ in towers(split) if "/" in name} == {"image_to_text", "text_to_image"}
    with pytest.raises(ArgumentError, match=r"languages: \['en', 'en'\] has to name each language once"):
        ByLanguage(["en", "en"])
