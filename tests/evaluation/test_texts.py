"""Texts of an evaluator's own, and the texts of concepts."""

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.evaluation import texts

PIXELS = torch.zeros(3, 16, 16, dtype=torch.uint8)
EXAMPLES = [
    Example("a", PIXELS, (Caption("a cat", "en"), Caption("eine Katze", "de")), "cat"),
    Example("b", PIXELS, (Caption("a dog in the rain", "en"),), "dog"),
    Example("c", PIXELS, (Caption("a cat", "en"), Caption("a kitten", "en")), "cat"),
    Example("d", None, (Caption("dog", "en"),), "dog"),
    Example("e", None, (Caption("a fish", "en"),), "fish"),
    Example("f", PIXELS, (), "bird"),
    Example("g", PIXELS, (Caption("a thing", "en"),)),
]


def test_each_concept_of_an_image_has_its_distinct_texts(make_split):
    split = make_split(EXAMPLES, batch_size=2, languages=("en", "de"))
    found = [[(text.text, text.language) for text in concept.texts] for concept in split.concepts]
    assert found == [
        [("a cat", "en"), ("eine Katze", "de"), ("a kitten", "en")],
        [("a dog in the rain", "en"), ("dog", "en")],
        [],
        [("a thing", "en")],
    ]
    keys = [concept.key for concept in split.concepts]
    assert [keys.index(key) for key in split.image_concept.tolist()] == [0, 1, 0, 2, 3]


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_texts_are_embedded_as_captions_are(make_split, monkeypatch, at_once):
    monkeypatch.setattr(texts, "TEXTS_AT_ONCE", at_once)
    split = make_split(EXAMPLES, batch_size=2, languages=("en", "de"))
    wanted = torch.cat([item.text_embedding for item in split.batches])
    english = [row for row, caption in enumerate(split.captions) if caption.language == "en"]
    found = split.embed_texts([split.captions[row].text for row in english], "en")
    torch.testing.assert_close(found, wanted[english])
    assert not found.requires_grad
    assert not torch.allclose(split.embed_texts(["a cat"], "en"), split.embed_texts(["a cat"], "de"))


def test_no_texts_and_long_texts(make_split):
    split = make_split(EXAMPLES, languages=("en", "de"))
    assert split.embed_texts([], "en").shape == (0, split.image_embedding.shape[1])
    long = split.embed_texts(["a cat " * 200], "en")
    torch.testing.assert_close(long.norm(dim=-1), torch.ones(1))


def test_it_computes_in_the_context_of_the_caller(make_split):
    split = make_split(EXAMPLES, languages=("en", "de"))
    exact = split.embed_texts(["a cat"], "en")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = split.embed_texts(["a cat"], "en")
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.1, atol=0.1)
