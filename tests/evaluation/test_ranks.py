"""Ranks against a sort, with several positives, ties and bad input."""

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.evaluation.pairs import merge_equal_captions
from mmlm.evaluation.ranks import best_positive_ranks, rank_positives
from mmlm.evaluation.retrieval import score_retrieval


def integers(*values):
    return torch.tensor(values, dtype=torch.int64)


def ranks_by_sorting(scores, is_positive):
    """The plain definition: positives after the negatives of equal score, then the place of the first positive."""
    ranks = []
    for row, positive in zip(scores.tolist(), is_positive.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda column: (-row[column], positive[column]))
        ranks.append(1 + next(place for place, column in enumerate(order) if positive[column]))
    return integers(*ranks)


def precision_by_sorting(scores, is_positive):
    """Average precision by its definition: the precision at the place of each positive, negatives of a tie first."""
    found = []
    for row, positive in zip(scores.tolist(), is_positive.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda column: (-row[column], positive[column]))
        places = [place for place, column in enumerate(order, start=1) if positive[column]]
        found.append(sum(number / place for number, place in enumerate(places, start=1)) / len(places))
    return torch.tensor(found, dtype=torch.float64)


def random_positives(generator, queries, candidates):
    """bool[Q, K] with one or more in every row and column."""
    is_positive = torch.rand(queries, candidates, generator=generator) < 0.1
    is_positive[torch.arange(queries), torch.randint(candidates, (queries,), generator=generator)] = True
    is_positive[torch.randint(queries, (candidates,), generator=generator), torch.arange(candidates)] = True
    return is_positive


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
def test_ranks_are_those_of_a_sort(seed, chunk_size):
    generator = torch.Generator().manual_seed(seed)
    # Few small integers: products are exact, and many are equal.
    images = torch.randint(-2, 3, (23, 4), generator=generator).float()
    texts = torch.randint(-2, 3, (31, 4), generator=generator).float()
    is_positive = random_positives(generator, 23, 31)
    scores = score_retrieval(images, texts, is_positive.nonzero(), chunk_size)
    for found, of_pairs, positive in (
        (scores.image_to_text, images @ texts.T, is_positive),
        (scores.text_to_image, texts @ images.T, is_positive.T),
    ):
        assert torch.equal(found.best, ranks_by_sorting(of_pairs, positive))
        torch.testing.assert_close(found.average_precision, precision_by_sorting(of_pairs, positive))


def test_many_positives_of_a_query_are_ranked_as_few_are():
    # Up to 26 of 31 are right: counted by the search, which has another path than few positives have.
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(-2, 3, (23, 4), generator=generator).float()
    texts = torch.randint(-2, 3, (31, 4), generator=generator).float()
    is_positive = torch.rand(23, 31, generator=generator) < torch.linspace(0.05, 0.8, 23)[:, None]
    is_positive[:, 0] = True
    found = rank_positives(images, texts, is_positive.nonzero(), 7)
    assert torch.equal(found.best, ranks_by_sorting(images @ texts.T, is_positive))
    torch.testing.assert_close(found.average_precision, precision_by_sorting(images @ texts.T, is_positive))


@pytest.mark.parametrize("candidates", [1, 7, 8, 255 * 8, 255 * 8 + 1, 2 * 255 * 8 + 3])
def test_counts_are_right_where_every_candidate_is_as_high(candidates):
    # Every comparison is true: the most that a byte, a word and a row of the count can hold.
    one = torch.ones(2, 1)
    everything = torch.ones(candidates, 1)
    assert best_positive_ranks(one, everything, integers([0, 0], [1, 0])).tolist() == [candidates, candidates]
    # And the last candidate alone is the best: none of the others counts.
    everything[:-1] = 0
    last = candidates - 1
    assert best_positive_ranks(one, everything, integers([0, last], [1, last])).tolist() == [1, 1]


def test_any_positive_counts_and_other_positives_do_not_stand_in_the_way():
    # One image, five captions in falling order of score: wrong, right, wrong, right, right.
    image = torch.tensor([[1.0]])
    texts = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    positives = integers([0, 1], [0, 3], [0, 4])
    assert best_positive_ranks(image, texts, positives).tolist() == [2]
    # From a caption's side, the best of its two images counts.
    images = torch.tensor([[0.1], [0.9], [0.5]])
    assert best_positive_ranks(image, images, integers([0, 0], [0, 2])).tolist() == [2]
    assert best_positive_ranks(image, images, integers([0, 0])).tolist() == [3]


def test_repeated_pairs_count_once():
    images = torch.eye(3)
    positives = integers([0, 0], [1, 1], [2, 2])
    assert best_positive_ranks(images, images, positives.repeat(4, 1)).tolist() == [1, 1, 1]


def test_equal_scores_are_ranked_pessimistically():
    collapsed = torch.ones(6, 3)
    positives = torch.arange(6)[:, None].repeat(1, 2)
    scores = score_retrieval(collapsed, collapsed, positives)
    assert scores.image_to_text.best.tolist() == [6] * 6
    assert scores.image_to_text.average_precision.tolist() == pytest.approx([1 / 6] * 6)
    # Only wrong candidates stand before the right one: with two positives of six, the rank is 5.
    both = torch.cat([positives, torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6], dim=1)])
    assert best_positive_ranks(collapsed, collapsed, both).tolist() == [5] * 6


def test_one_image_and_one_caption():
    scores = score_retrieval(torch.ones(1, 2), torch.ones(1, 2), integers([0, 0]))
    assert scores.image_to_text.best.tolist() == scores.text_to_image.best.tolist() == [1]


@pytest.fixture
def reduced_precision():
    """The process has asked for fast float32 products: bf16 internals on a CPU that has them, TF32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("reduced_precision")
def test_scores_are_float32_under_autocast_and_reduced_matmul_precision():
    # The positive is ahead by 1 part in 4096: visible to float32, lost to the 8 bits of bf16 and to TF32's 11.
    queries = torch.ones(64, 256)
    candidates = torch.ones(128, 256)
    candidates[5] += 2.0**-12
    positives = torch.stack([torch.arange(64), torch.full((64,), 5)], dim=1)
    assert best_positive_ranks(queries, candidates, positives).tolist() == [1] * 64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (queries @ candidates.T).unique().numel() == 1
        assert best_positive_ranks(queries, candidates, positives).tolist() == [1] * 64


@pytest.mark.usefixtures("reduced_precision")
def test_the_choice_of_matmul_precision_comes_back():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    assert "ieee" not in before
    best_positive_ranks(torch.eye(2), torch.eye(2), integers([0, 0], [1, 1]))
    assert [backend.fp32_precision for backend in backends] == before
    assert torch.get_float32_matmul_precision() == "medium"


def test_bf16_embeddings_are_compared_in_float32():
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.randn(40, 16, generator=generator).bfloat16(),
        torch.randn(40, 16, generator=generator).bfloat16(),
    )
    positives = torch.arange(40)[:, None].repeat(1, 2)
    expected = best_positive_ranks(images.float(), texts.float(), positives)
    assert torch.equal(best_positive_ranks(images, texts, positives), expected)


def test_a_query_without_a_positive_is_the_users_error():
    embedding = torch.eye(3)
    with pytest.raises(UserError, match=r"1 of 3 images have no positive \(first: row 1\)"):
        score_retrieval(embedding, embedding, integers([0, 0], [0, 1], [2, 2]))
    with pytest.raises(UserError, match=r"2 of 3 captions have no positive \(first: row 1\)"):
        score_retrieval(embedding, embedding, integers([0, 0], [1, 0], [2, 0]))
    with pytest.raises(UserError, match="3 of 3 queries have no positive"):
        best_positive_ranks(embedding, embedding, torch.empty(0, 2, dtype=torch.int64))


def test_values_that_are_not_finite_do_not_read_as_a_perfect_rank():
    good, bad = torch.eye(3), torch.eye(3)
    bad[2, 1] = torch.nan
    pairs = integers([0, 0], [1, 1], [2, 2])
    with pytest.raises(ValueError, match="queries hold values that are not finite, first in row 2"):
        best_positive_ranks(bad, good, pairs)
    with pytest.raises(ValueError, match="candidates hold values that are not finite, first in row 2"):
        best_positive_ranks(good, bad, pairs)


@pytest.mark.parametrize(
    ("queries", "candidates", "positives", "chunk_size", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), integers([0, 0]), 8, r"must be \[Q, E\] and \[K, E\]"),
        (torch.ones(0, 3), torch.ones(2, 3), integers([0, 0]), 8, "0 queries and 2 candidates"),
        (torch.ones(2, 3), torch.ones(2, 3), integers(0, 1), 8, r"must be \[P, 2\]"),
        (torch.ones(2, 3), torch.ones(2, 3), integers([0, 2]), 8, "rows outside of 2 queries and 2 candidates"),
        (torch.ones(2, 3), torch.ones(2, 3), integers([-1, 0]), 8, "rows outside"),
        (torch.ones(2, 3), torch.ones(2, 3), integers([0, 0]), 0, "chunk_size 0"),
    ],
)
def test_what_does_not_fit_is_refused(queries, candidates, positives, chunk_size, message):
    with pytest.raises(ValueError, match=message):
        best_positive_ranks(queries, candidates, positives, chunk_size)


def test_a_wrong_text_that_occurs_twice_fills_one_place_when_merged():
    image = torch.tensor([[1.0]])
    texts, keys, positives = torch.tensor([[0.9], [0.9], [0.5]]), integers(1, 1, 2), integers([0, 2])
    assert best_positive_ranks(image, texts, positives).tolist() == [3]
    kept, pairs = merge_equal_captions(positives, keys)
    assert best_positive_ranks(image, texts[kept], pairs).tolist() == [2]
