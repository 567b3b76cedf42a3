"""Retrieval under its protocols: CLIP_benchmark's numbers, equal texts, several languages, and intervals."""

import random

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.batch import Caption, Example
from mmlm.evaluation.evaluators import Retrieval
from mmlm.evaluation.ranks import Ranked
from mmlm.evaluation.retrieval import (
    CUTOFFS,
    figures_of,
    gallery_under,
    median_interval,
    of_ranks,
    recall_at,
    score_retrieval,
)

CLIP_BENCHMARK = {
    0: {"image_to_text": [8 / 60, 25 / 60, 41 / 60], "text_to_image": [32 / 300, 114 / 300, 169 / 300]},
    1: {"image_to_text": [8 / 60, 32 / 60, 42 / 60], "text_to_image": [41 / 300, 125 / 300, 177 / 300]},
}
"""R@1, R@5 and R@10 that clip_benchmark 1.6.2 (``metrics/zeroshot_retrieval.py``) gives for ``embeddings``, by seed."""


def embeddings(seed):
    """60 images and five texts of each, in the order of the images; unit length."""
    draw = random.Random(seed)
    images = [[draw.gauss(0, 1) for _ in range(8)] for _ in range(60)]
    texts = [[0.45 * x + draw.gauss(0, 1) for x in image] for image in images for _ in range(5)]
    return F.normalize(torch.tensor(images), dim=1), F.normalize(torch.tensor(texts), dim=1)


def recalls_of_topk(queries, candidates, right):
    """R@k by its plain definition, as CLIP_benchmark has it: is one of the k highest scores a right one?"""
    scores = queries @ candidates.T
    return [right.gather(1, scores.topk(cutoff, dim=1).indices).any(dim=1).double().mean().item() for cutoff in CUTOFFS]


@pytest.mark.parametrize("seed", CLIP_BENCHMARK)
def test_five_captions_an_image_are_counted_as_clip_benchmark_counts(make_split, seed):
    images, texts = embeddings(seed)
    words = [(f"image {row}, caption {number}",) for row in range(60) for number in range(5)]
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    examples = [
        Example(f"{row}", pixels, tuple(Caption(text) for (text,) in words[5 * row : 5 * row + 5])) for row in range(60)
    ]
    split = make_split(examples, batch_size=60)
    split.batches[0].text_embedding.copy_(F.pad(texts, (0, 8)))
    split.batches[0].features.embedding.copy_(F.pad(images, (0, 8)))
    values = dict(Retrieval("coco")(split))
    right = torch.zeros(60, 300, dtype=torch.bool)
    right[torch.arange(300) // 5, torch.arange(300)] = True
    for way, plain in (
        ("image_to_text", recalls_of_topk(images, texts, right)),
        ("text_to_image", recalls_of_topk(texts, images, right.T)),
    ):
        found = [values[f"{way}/R@{cutoff}"] for cutoff in CUTOFFS]
        assert found == plain
        # It gives float32.
        assert torch.tensor(found).tolist() == torch.tensor(CLIP_BENCHMARK[seed][way]).tolist()


def examples():
    """Three images; the first two have a caption in common, the last one none in English."""
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    captions = (
        (Caption("a cat", "en"), Caption("sleeping", "en"), Caption("Katze", "de")),
        (Caption("a dog", "en"), Caption("sleeping", "en")),
        (Caption("Vogel", "de"),),
    )
    return [Example(f"{row}", pixels, of_image, f"thing {row}") for row, of_image in enumerate(captions)]


def test_the_candidates_and_pairs_of_each_protocol(make_split):
    split = make_split(examples(), languages=("en", "de"))

    def pairs(protocol, language=None):
        rows = [row for row, caption in enumerate(split.captions) if language in (None, caption.language)]
        gallery = gallery_under(protocol, split, rows).paired()
        return gallery.texts, gallery.pairs.tolist()

    assert pairs("coco") == (
        ("a cat", "sleeping", "Katze", "a dog", "sleeping", "Vogel"),
        [[0, 0], [0, 1], [0, 2], [1, 3], [1, 4], [2, 5]],
    )
    assert pairs("paired") == (("a cat", "a dog", "Vogel"), [[0, 0], [1, 1], [2, 2]])
    assert pairs("distinct") == (
        ("a cat", "sleeping", "Katze", "a dog", "Vogel"),
        [[0, 0], [0, 1], [0, 2], [1, 1], [1, 3], [2, 4]],
    )
    assert pairs("coco", "de") == (("Katze", "Vogel"), [[0, 0], [1, 1]])
    assert pairs("paired", "en") == (("a cat", "a dog"), [[0, 0], [1, 1]])


@pytest.mark.parametrize("protocol", ["distinct", "coco", "paired"])
def test_every_protocol_declares_what_it_yields(make_split, protocol):
    evaluator = Retrieval(protocol)
    declared = {*evaluator.figures, *(name for one in evaluator.figures.values() for name in one.helpers())}
    values = dict(evaluator(make_split(examples(), languages=("en", "de"))))
    assert values.keys() == declared
    for name in evaluator.figures:
        assert values[f"{name}/low"] - 1e-12 <= values[name] <= values[f"{name}/high"] + 1e-12, name
    assert len({figure.group.name for figure in (*figures_of("coco").values(), *figures_of("paired").values())}) == 4


def test_recall_and_its_names():
    ranks = torch.tensor([1, 2, 5, 6, 10, 11])
    assert recall_at(ranks, 5) == 0.5
    ranked = Ranked(torch.tensor([1, 5, 7, 20]), torch.tensor([1.0, 0.2, 0.1, 0.1], dtype=torch.float64))
    values = dict(of_ranks("image_to_text", ranked, torch.arange(4), torch.ones(4), 30))
    assert [values[f"image_to_text/R@{cutoff}"] for cutoff in CUTOFFS] == [0.25, 0.5, 0.75]
    assert values["image_to_text/median_rank"] == 6
    assert values["image_to_text/mAP"] == pytest.approx(0.35)


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    draw = random.Random(0)
    covered = 0
    for _ in range(300):
        # The median of a geometric distribution with the parameter 1/8 is 6.
        ranks = torch.tensor([1 + int(draw.expovariate(0.1335)) for _ in range(150)])
        low, high = median_interval(ranks, range(150))
        covered += low <= 6 <= high
    assert 0.92 <= covered / 300 <= 1


def test_images_of_one_concept_widen_the_interval_of_a_median():
    ranks = torch.tensor([1, 3, 9, 2, 40, 5, 8, 30, 4, 60]).repeat_interleave(6)
    alone = median_interval(ranks, range(60))
    together = median_interval(ranks, [row // 6 for row in range(60)])
    assert together[0] <= alone[0] <= alone[1] <= together[1]
    assert together != alone


def test_chunks_change_no_rank():
    images, texts = embeddings(0)
    pairs = torch.stack([torch.arange(300) // 5, torch.arange(300)], dim=1)
    whole, chunked = score_retrieval(images, texts, pairs), score_retrieval(images, texts, pairs, 7)
    assert torch.equal(whole.image_to_text.best, chunked.image_to_text.best)
    assert torch.equal(whole.text_to_image.best, chunked.text_to_image.best)
