"""Who takes part, and who is whose positive under each rule, against loops over the definitions."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.objectives.shared import candidates
from mmlm.objectives.shared.candidates import NONE, Candidates
from mmlm.objectives.shared.keys import Keys, Labels

ALL_AT_ONCE = {
    "image_index": (3, 0, 0, TEXT_ONLY, 1, 4, 1),
    "num_images": 6,
    "image_concept": (5, 6, 7, 5, 8, 9),
    "caption_key": (1, 2, 3, 3, 4, 2, 5),
}


def is_positive(batch: Batch, image: int, caption: int, rule: str) -> bool:
    """One pair that takes part."""
    own = [c for c in range(len(batch.tokens)) if batch.image_index[c] == image]
    if rule == "own":
        return caption in own
    same_text = any(batch.caption_key[c] == batch.caption_key[caption] for c in own)
    return bool(same_text or (rule == "concept" and batch.image_concept[image] == batch.caption_concept[caption]))


@pytest.mark.parametrize("rule", ["concept", "text", "own"])
def test_rules_are_their_definitions(make_batch, rule):
    batch = make_batch(**ALL_AT_ONCE)
    found = Candidates.of(Keys.of(batch), rule)
    assert found.images.tolist() == [True, True, False, True, True, False]
    assert found.captions.tolist() == [True, True, True, False, True, True, True]
    assert (found.own, found.own_images) == (slice(0, 6), slice(0, 4))
    assert found.image_of.tolist() == [2, 0, 0, 1, 3, 1], "numbers among the four images that take part"
    images, captions = (0, 1, 3, 4), (0, 1, 2, 4, 5, 6)
    expected = torch.tensor([[is_positive(batch, b, c, rule) for c in captions] for b in images])
    assert torch.equal(found.positive(slice(0, 4), slice(0, 6)), expected)
    assert torch.equal(found.positive(slice(1, 3), slice(2, 5)), expected[1:3, 2:5])
    assert expected.any(dim=0).all()
    assert expected.any(dim=1).all()


def test_concepts_and_texts_are_the_whole_matrix_of_keys(make_batch):
    batch = make_batch(**ALL_AT_ONCE)
    keys = Keys.of(batch)
    found = Candidates.of(keys, "concept")
    everything = slice(None)
    expected = Labels.of(keys, keys).positive(everything, everything)[found.images][:, found.captions]
    assert torch.equal(found.positive(everything, everything), expected)


@pytest.mark.parametrize("rule", ["concept", "text", "own"])
@pytest.mark.parametrize(
    "case",
    [
        {"image_index": (TEXT_ONLY,), "num_images": 2},
        {"image_index": (TEXT_ONLY,), "num_images": 0},
        {"image_index": (), "num_images": 2},
    ],
)
def test_nobody_may_take_part(make_batch, rule, case):
    found = Candidates.of(Keys.of(make_batch(**case)), rule)
    assert not found.images.any()
    assert not found.captions.any()
    assert found.positive(slice(None), slice(None)).shape == (0, 0)
    nothing = torch.zeros(0, 3)
    assert [chosen.shape for chosen in found.hardest(nothing, nothing)] == [(0,), (0,)]


# The hardest negatives


def embeddings(*batches: Batch) -> list[tuple[Tensor, Tensor]]:
    """Random image and text embeddings of each batch; some are equal."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(len(batch.images), len(batch.tokens)) for batch in batches]
    return [tuple(torch.randint(-2, 3, (n, 4), generator=generator).float() for n in pair) for pair in sizes]


@pytest.mark.parametrize("size", [2, 100])
@pytest.mark.parametrize("rule", ["concept", "text", "own"])
def test_the_hardest_negative_is_the_first_of_the_most_similar(make_batch, rule, size):
    batch = make_batch(**ALL_AT_ONCE)
    found = Candidates.of(Keys.of(batch), rule)
    ((image, text),) = embeddings(batch)
    image, text = image[found.images], text[found.captions]
    everything = slice(None)
    similarity = (image @ text.T).masked_fill(found.positive(everything, everything), -torch.inf)
    captions, images = found.hardest(image.requires_grad_(), text, size)
    assert captions.tolist() == [row.index(max(row)) for row in similarity.tolist()]
    assert images.tolist() == [column.index(max(column)) for column in similarity.T.tolist()]
    assert torch.equal(
        torch.cat([tile.similarity for tile in found.tiles(image, text, 3)][:2], 1), (image @ text.T)[:3]
    )


def test_no_negative_is_no_choice(make_batch):
    batch = make_batch((0, 1), 2, image_concept=(7, 7))
    found = Candidates.of(Keys.of(batch), "concept")
    captions, images = found.hardest(torch.eye(2), torch.eye(2))
    assert captions.tolist() == images.tolist() == [NONE, NONE]


def as_ranks(monkeypatch: pytest.MonkeyPatch, work: Sequence[Callable[[], tuple[Tensor, Tensor]]]) -> list:
    """Runs each of ``work`` as a rank of its own, in a thread; ``gather`` waits for all of them."""
    here, meeting, sent = threading.local(), threading.Barrier(len(work), timeout=30), [torch.zeros(0)] * len(work)

    def gather(local: Tensor) -> Tensor:
        sent[here.rank] = local
        meeting.wait()
        everyone = torch.cat(list(sent))
        meeting.wait()
        return everyone

    def be(rank: int) -> tuple[Tensor, Tensor]:
        here.rank = rank
        return work[rank]()

    monkeypatch.setattr(candidates, "gather", gather)
    monkeypatch.setattr(candidates, "rank", lambda: here.rank)
    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(be, range(len(work))))


@pytest.mark.parametrize("rule", ["concept", "text", "own"])
def test_ranks_choose_as_one_process_does(make_batch, monkeypatch, rule):
    """One rank has nothing but a text and an image that do not belong together."""
    parts = [
        make_batch((0, 1, 0), 2, image_concept=(5, 6), caption_key=(1, 2, 3)),
        make_batch((TEXT_ONLY,), 1, image_concept=(5,), caption_key=(1,)),
        make_batch((1, 3, 0, 1), 4, image_concept=(6, 8, 9, 5), caption_key=(1, 4, 4, 7)),
    ]
    given = embeddings(*parts)
    whole = Candidates.of(Keys.of(*parts), rule)
    image, text = (torch.cat(both) for both in zip(*given, strict=True))
    expected = whole.hardest(image[whole.images], text[whole.captions])
    assert (expected[0] != NONE).all()

    def of_rank(part: Batch, image: Tensor, text: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        def work() -> tuple[Tensor, Tensor]:
            own = Candidates.of(Keys.of(part), rule)
            return own.hardest(image[own.images], candidates.gather(text[own.captions]), size=2)

        return work

    ranks = as_ranks(monkeypatch, [of_rank(part, *both) for part, both in zip(parts, given, strict=True)])
    for one, all_at_once in zip(zip(*ranks, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(one), all_at_once)
