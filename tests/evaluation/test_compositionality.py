"""Compositionality on splits whose right values are known: by plain loops, for a bag of words, for perfect scores."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import declared, family_of, without_helpers
from mmlm.data.contrasts import Contrast
from mmlm.data.scenes import Scenes
from mmlm.evaluation.compositionality import WAYS, Compositionality
from mmlm.evaluation.contrast_scores import GROUP_CHANCE
from mmlm.evaluation.likelihood import log_likelihoods
from mmlm.evaluation.swaps import swaps
from mmlm.model.model import ImageTextModel
from mmlm.model.text_encoders.bag_of_words import BagOfWords


class Known(list[Example]):
    """Examples of which contrasts are known."""

    def __init__(self, examples: list[Example], known: dict[str, list[Contrast]]) -> None:
        super().__init__(examples)
        self._known = known

    def captions(self) -> Iterator[Caption]:
        return (caption for example in self for caption in example.captions)

    def contrasts(self) -> dict[str, list[Contrast]]:
        return self._known


def scenes(count: int) -> list[Example]:
    source = Scenes("seen", count, size=16, wordings=1)
    return [source[index] for index in range(count)]


def pictures(*texts: tuple[str, ...]) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (len(texts), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [
        Example(f"image{row}", image, tuple(Caption(text, "en") for text in own))
        for row, (image, own) in enumerate(zip(drawn, texts, strict=True))
    ]


def test_known_contrasts_against_a_plain_loop(make_split):
    examples = pictures(("a red cat",), ("a blue dog",), ("a cat",))
    known = {
        "image0": [Contrast("colour", "a red cat", "a blue cat"), Contrast("animal", "a red cat", "a red dog")],
        "image1": [Contrast("colour", "a blue dog", "a red dog")],
    }
    split = replace(make_split(examples, 2, languages=("en",)), source=Known(examples, known))
    found = dict(Compositionality(language="en")(split))
    right: dict[str, list[float]] = {"colour": [], "animal": []}
    likely: list[float] = []
    for row, example in enumerate(examples):
        for contrast in known.get(example.id, ()):
            texts = (contrast.true, contrast.false)
            true, false = (split.image_embedding[row] @ split.embed_texts(texts, "en").T).tolist()
            right[contrast.kind].append(float(true > false))
            both = log_likelihoods(split, torch.tensor([row, row]), texts, torch.tensor([0, 1]), "en")
            likely.append(float(both[0] > both[1]))
    assert found["contrasts"] == 3
    assert found["embedding"] == pytest.approx(sum(map(sum, right.values())) / 3)
    assert found["embedding_by_kind/colour"] == pytest.approx(sum(right["colour"]) / 2)
    assert found["embedding_by_kind/animal"] == right["animal"][0]
    assert found["likelihood"] == pytest.approx(sum(likely) / 3)
    assert all(found[f"{way}/low"] <= found[way] <= found[f"{way}/high"] for way in WAYS)


def test_every_value_is_declared(make_split):
    examples = scenes(6)
    split = replace(make_split(examples, languages=("en",)), source=Scenes("seen", 6, size=16, wordings=1))
    evaluator = Compositionality(language="en")
    figures = evaluator.figures
    values = dict(evaluator(split))
    for name in without_helpers(figures, values):
        assert name in figures or family_of(figures, name), name
        assert not declared(figures, name).share or 0 <= values[name] <= 1
    assert without_helpers(figures, ["embedding/low", "embedding_high/swap_colour", "blend_group/low"]) == []


def test_a_bag_of_words_is_at_chance_where_the_words_are_the_same(make_split):
    examples = scenes(40)
    split = make_split(examples, 16, languages=("en",))
    own = split.model
    tower = BagOfWords(split.tokenizer.vocab_size, width=32).eval()
    model = ImageTextModel(own.encoder, own.bridge, own.decoder, 16, tower).eval()
    split = replace(split, model=model, source=Scenes("seen", 40, size=16, wordings=1))
    found = dict(Compositionality(likelihood=False, language="en")(split))
    assert found["embedding_by_kind/swap_colour"] == 0.5
    assert found["embedding_by_kind/swap_size"] == 0.5
    assert found["embedding_low/swap_colour"] < 0.5 < found["embedding_high/swap_colour"]
    assert "likelihood" not in found
    # With an encoder that reads the order, the same random weights see a difference in every pair.
    by_order = dict(Compositionality(likelihood=False, language="en")(replace(split, model=own)))
    assert by_order["embedding_by_kind/swap_colour"] != 0.5


def test_groups_have_winogrounds_scores(make_split):
    examples = pictures(("a cat on a mat",), ("a mat on a cat",), ("a cat",))
    texts = [example.captions[0].text for example in examples]
    known = {
        "image0": [Contrast("object", texts[0], texts[1], "one")],
        "image1": [Contrast("object", texts[1], texts[0], "one")],
        "image2": [Contrast("object", texts[2], "a mat", "half")],
    }
    split = replace(make_split(examples, languages=("en",)), source=Known(examples, known))
    found = dict(Compositionality(language="en")(split))
    s = (split.image_embedding[:2] @ split.embed_texts(texts[:2], "en").T).tolist()
    text, image = s[0][0] > s[0][1] and s[1][1] > s[1][0], s[0][0] > s[1][0] and s[1][1] > s[0][1]
    assert [found[f"embedding_{name}"] for name in GROUP_CHANCE] == [text, image, text and image]
    assert all(f"{way}_{name}" in found for way in WAYS for name in GROUP_CHANCE)


def test_without_known_contrasts_words_of_the_first_caption_are_exchanged(make_split):
    examples = pictures(("a red cat and a blue dog", "blue cat"), ("cat", "a white cat"), ("dog cat", "cat dog"))
    split = make_split(examples, languages=("en",))
    found = dict(Compositionality(likelihood=False, language="en")(split))
    # The second image's first caption has one word, and what the third's would give is another caption of it.
    assert found["contrasts"] == len(swaps("a red cat and a blue dog", 0)) == 4
    assert "embedding_by_kind/swap_colour" in found


def test_a_split_without_a_contrast_is_refused(make_split):
    split = make_split(pictures(("cat",), ("dog",)), languages=("en",))
    with pytest.raises(UserError, match="no caption of the split 'hand_made' has two words that could be exchanged"):
        list(Compositionality(language="en")(split))


def test_the_weight_of_a_half_is_chosen_on_the_other(make_split, monkeypatch):
    """A likelihood that is always right beside an embedding of random weights gets most of the weight."""
    examples = scenes(12)
    split = replace(make_split(examples, languages=("en",)), source=Scenes("seen", 12, size=16, wordings=1))
    evaluator = Compositionality(language="en")

    def told(split, images, texts, chosen, language):
        right = {caption.text for example in examples for caption in example.captions}
        return torch.tensor([float(texts[text] in right) for text in chosen.tolist()]).double()

    monkeypatch.setattr("mmlm.evaluation.compositionality.log_likelihoods", told)
    monkeypatch.setattr(
        "mmlm.evaluation.compositionality.text_priors", lambda split, texts, *rest: torch.zeros(len(texts)).double()
    )
    found = dict(evaluator(split))
    assert found["likelihood"] == found["corrected"] == 1
    assert found["embedding"] < 0.8 < found["blend"]
    assert found["weight"] > 0.5


def test_settings_out_of_range_are_refused():
    for name in ("prior_images", "most"):
        with pytest.raises(ArgumentError, match=f"{name}: 0 must be at least 1"):
            Compositionality(**{name: 0})
