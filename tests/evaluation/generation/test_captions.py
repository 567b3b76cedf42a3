"""Captions in words: prompts, languages, forbidden texts, room, and the order by similarity to the image."""

from collections.abc import Callable

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import UserError
from mmlm.evaluation.generation.captions import Written, pixel_keys, write_captions
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.model.model import ImageTextModel
from tests.evaluation.hand_made import IMAGE_SIZE, fitted_tokenizer, small_model

TEXTS = ("a red square on a table", "a blue circle and a red star", "ein rotes Quadrat")
LONGEST = 14


@pytest.fixture(scope="module")
def write() -> Callable[..., list[list[Written]]]:
    """``write(images, **settings)``: by a model of random weights, which has two languages."""
    examples = [Example(text, torch.zeros(3, 2, 2, dtype=torch.uint8), (Caption(text),), None) for text in TEXTS]
    tokenizer = fitted_tokenizer(examples, languages=("en", "de"))
    model = small_model(tokenizer)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def written(images: torch.Tensor, **settings: object) -> list[list[Written]]:
        with torch.no_grad():
            features = model.encode_image(images)
        keys = pixel_keys(images)
        return write_captions(model, tokenizer, features, GenerationSettings(**settings), keys, LONGEST, "en")

    written.model, written.tokenizer = model, tokenizer  # type: ignore[attr-defined]
    return written


def images(count: int = 4) -> torch.Tensor:
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_captions_begin_with_the_prompt_and_its_language(write):
    tokenizer = write.tokenizer
    for language in (None, "de"):
        for of_image in write(images(), prompt="a red square", language=language, beams=3, n=2):
            for one in of_image:
                assert one.text.startswith("a red square")
                start = [tokenizer.start_id(language or "en"), *tokenizer.encode("a red square", None, 99)[1:-1]]
                assert tokenizer.decode([*start, *one.hypothesis.tokens]) == one.text
                assert len(start) + len(one.hypothesis.tokens) <= LONGEST
    assert write(images(), language="de") != write(images(), language="en")
    with pytest.raises(UserError, match="a caption's language is 'xx'"):
        write(images(), language="xx")


def test_what_is_forbidden_is_not_said(write):
    said = [of_image[0].text for of_image in write(images(8))]
    tokenizer = write.tokenizer
    pieces = {tokenizer.decode([token]).strip() for text in said for token in tokenizer.encode(text, None, 99)[1:-1]}
    some = sorted(piece for piece in pieces if piece.isalpha())[:3]
    assert some, "there is something to forbid"
    runs = [tuple(tokenizer.encode(word, None, 99)[1:-1]) for word in some]
    for of_image in write(images(8), forbidden=some, temperature=1.0, n=5):
        for one in of_image:
            said = one.hypothesis.tokens
            for run in runs:
                assert run not in [said[place : place + len(run)] for place in range(LONGEST)]


def test_lengths_are_kept(write):
    for settings in ({}, {"beams": 3}, {"temperature": 2.0}):
        for of_image in write(images(), min_tokens=6, max_tokens=8, **settings):
            assert 6 <= 1 + len(of_image[0].hypothesis.tokens) <= 8
    with pytest.raises(UserError, match="max_tokens: 15 is more than the model reads, 14; lower it"):
        write(images(), max_tokens=15)
    with pytest.raises(UserError, match="min_tokens: 15 must be at most 14, the longest caption"):
        write(images(), min_tokens=15)
    with pytest.raises(UserError, match=r"prompt: its \d+ tokens and the start leave no room in captions of 4"):
        write(images(), prompt="a red square on a table", max_tokens=4)


def similarity(model: ImageTextModel, tokenizer: object, image: torch.Tensor, text: str) -> float:
    ids = torch.tensor([tokenizer.encode(text, "en", LONGEST)])
    with torch.no_grad():
        vector = model.encode_text(ids, torch.tensor([ids.shape[1]]))[0]
        return float(model.encode_image(image[None]).embedding[0] @ vector)


@pytest.mark.parametrize("settings", [{"beams": 6}, {"temperature": 1.5, "seed": 2}])
def test_captions_are_reranked_by_their_similarity_to_the_image(write, settings):
    every = write(images(), n=6, **settings)
    ranked = write(images(), n=2, rerank=6, **settings)
    for image, candidates, kept in zip(images(), every, ranked, strict=True):
        scores = {one.text: similarity(write.model, write.tokenizer, image, one.text) for one in candidates}
        best = sorted((scores[one.text] for one in candidates), reverse=True)[:2]
        assert [one.score for one in kept] == pytest.approx(best, abs=1e-5)
        assert [one.similarity for one in kept] == [one.score for one in kept]
        assert all(scores[one.text] == pytest.approx(one.score, abs=1e-5) for one in kept)
    assert [of_image[0].text for of_image in every] != [of_image[0].text for of_image in ranked]


def test_samples_go_with_the_pixels(write):
    settings = {"temperature": 1.0, "n": 3}
    forwards, backwards = write(images(), **settings), write(images().flip(0), **settings)
    texts = [[one.text for one in of_image] for of_image in forwards]
    assert texts == [[one.text for one in of_image] for of_image in backwards[::-1]]
    keys = pixel_keys(images())
    assert len(set(keys.tolist())) == 4
    assert (keys >= 0).all()
