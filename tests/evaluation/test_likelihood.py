"""Log-likelihoods against a plain loop over tokens, whatever the batches; priors and blends against plain sums."""

import math
from itertools import pairwise

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.evaluation.likelihood import WEIGHTS, blended, choose_weight, log_likelihoods, text_priors

TEXTS = ("a cat", "two dogs beside a small red house", "", "a cat and a dog")
IMAGES = 5


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (IMAGES, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [Example(f"image{n}", image, (Caption(f"{TEXTS[n % 2]} {n}", "en"),)) for n, image in enumerate(drawn)]


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    """Every image with every text, in an odd order."""
    pairs = torch.cartesian_prod(torch.arange(IMAGES), torch.arange(len(TEXTS))).flip(0)
    return pairs[:, 0], pairs[:, 1]


@torch.no_grad()
def slow(split, image: int, text: str) -> float:
    """The sum over the tokens of one text, each by the model's own decoding of what stands before it."""
    item = next(item for item in split.batches if image in item.rows)
    features = type(item.features)(
        item.features.embedding[image - item.first][None], item.features.memory[image - item.first][None]
    )
    ids = split.tokenizer.encode(text, "en", split.max_tokens)
    cache = split.model.start_decoding(features)
    total = 0.0
    for token, wanted in pairwise(ids):
        logits = split.model.decode(torch.tensor([[token]]), cache)[0, -1].double()
        total += (logits[wanted] - logits.logsumexp(dim=0)).item()
    return total


def test_against_a_plain_loop(make_split):
    split = make_split(examples(), 2, languages=("en",))
    images, chosen = grid()
    found = log_likelihoods(split, images, TEXTS, chosen, "en")
    assert found.dtype == torch.float64
    for image, text, value in zip(images.tolist(), chosen.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(slow(split, image, TEXTS[text]), abs=1e-4)
    assert len(found.unique()) == len(found)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_neither_batches_nor_the_other_pairs_change_a_value(make_split, batch_size, monkeypatch):
    images, chosen = grid()
    wanted = log_likelihoods(make_split(examples(), IMAGES, languages=("en",)), images, TEXTS, chosen, "en")
    split = make_split(examples(), batch_size, languages=("en",))
    monkeypatch.setattr("mmlm.evaluation.likelihood.PAIRS_AT_ONCE", 3)
    assert torch.allclose(log_likelihoods(split, images, TEXTS, chosen, "en"), wanted, rtol=1e-5)
    alone = log_likelihoods(split, images[4:5], TEXTS, chosen[4:5], "en")
    assert torch.allclose(alone, wanted[4:5], rtol=1e-5)
    assert len(log_likelihoods(split, images[:0], TEXTS, chosen[:0], "en")) == 0


def test_a_prior_is_the_mean_probability_over_images(make_split):
    split = make_split(examples(), 2, languages=("en",))
    found = text_priors(split, TEXTS, "en", [1, 4])
    for place, text in enumerate(TEXTS):
        plain = sum(math.exp(slow(split, image, text)) for image in (1, 4)) / 2
        assert found[place].item() == pytest.approx(math.log(plain), abs=1e-4)


def test_blends_and_their_weight():
    one, two = torch.tensor([1.0, 4.0]).double(), torch.tensor([10.0, -10.0]).double()
    assert blended(one, two, 0.0, (2.0, 10.0)).tolist() == [0.5, 2.0]
    assert blended(one, two, 1.0, (2.0, 10.0)).tolist() == [1.0, -1.0]
    assert blended(one, two, 0.25, (2.0, 10.0)).tolist() == [0.625, 1.25]
    assert choose_weight(lambda weight: -abs(weight - 0.3)) == 0.3
    assert choose_weight(lambda weight: 1.0) == 0.5
    assert choose_weight(lambda weight: float(weight > 0.75)) == 0.8
    assert (min(WEIGHTS), max(WEIGHTS)) == (0, 1)
