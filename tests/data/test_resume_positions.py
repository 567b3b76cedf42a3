"""Resuming with other numbers of ranks and workers: the ranks together go on at exactly the right example.

Of a folder, all of which is one shuffle, and of tar shards, of which a window at a time is.

The yardstick is the stream of one process without workers, one example a batch, never interrupted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch, Caption
from mmlm.core.errors import UserError
from mmlm.data.loader import TrainLoader
from mmlm.data.sources import Source
from mmlm.data.tar_shards import TarShards
from mmlm.data.tokenizers.byte_pair import BytePair
from tests.data.pictures import Pictures, write_folder
from tests.data.tars import write_shards
from tests.data.test_loader import make_loader

NUM_EXAMPLES = 22
BATCH_SIZE = 8
"""Epochs end in the middle of a batch, and at another place of it each time."""
STREAM = 5 * NUM_EXAMPLES
SEED = 3


@dataclass(frozen=True)
class Sample:
    """One example as it is trained on."""

    id: str
    pixels: Tensor
    captions: tuple[Caption, ...]

    def equals(self, other: "Sample") -> bool:
        """To the last bit."""
        return (self.id, self.captions) == (other.id, other.captions) and torch.equal(self.pixels, other.pixels)


@dataclass(frozen=True)
class Data:
    """What is read, in windows of so many shards (None: all is one shuffle)."""

    source: Source
    window: int | None = None


@dataclass(frozen=True)
class Layout:
    """By how many ranks the data is read, and by how many worker processes of each."""

    ranks: int
    workers: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks, {self.workers} workers"

    def loaders(
        self, source: Source, tokenizer: BytePair, position: int, window: int | None = None
    ) -> list[TrainLoader]:
        """One a rank, about to go on at ``position``."""
        loaders = [
            make_loader(
                tokenizer,
                source,
                batch_size=BATCH_SIZE,
                seed=SEED,
                captions_per_image=2,
                workers=self.workers,
                rank=rank,
                world_size=self.ranks,
                shuffle_window=window,
            )
            for rank in range(self.ranks)
        ]
        for loader in loaders:
            loader.position = position
        return loaders


FOLDER = pytest.mark.parametrize("data", ["folder"], indirect=True)
LAYOUTS = [Layout(ranks, workers) for workers in (0, 1, 2) for ranks in (1, 2, 4)]


def samples_of(batch: Batch) -> list[Sample]:
    """The examples of a batch, all of which have an image."""
    captions: list[list[Caption]] = [[] for _ in batch.ids]
    for caption, row in zip(batch.captions, batch.image_index.tolist(), strict=True):
        captions[row].append(caption)
    rows = zip(batch.ids, batch.images, captions, strict=True)
    return [Sample(name, pixels, tuple(texts)) for name, pixels, texts in rows]


def global_batches(loaders: list[TrainLoader], count: int) -> Iterator[list[Batch]]:
    """The next ``count`` batches of all ranks, each as the ranks' shares in order."""
    yield from zip(*(islice(loader, count) for loader in loaders), strict=True)


SHARDS = {"several shards": [5, 1, 9, 7], "one shard": [NUM_EXAMPLES]}
"""Examples of each shard: less than there are of ranks x workers, or one of them less than of workers."""


@pytest.fixture(scope="module", params=["folder", *SHARDS])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder, pictures = tmp_path_factory.mktemp("pictures"), Pictures(NUM_EXAMPLES)
    if request.param == "folder":
        return Data(write_folder(folder, pictures))
    return Data(TarShards(write_shards(folder, pictures, SHARDS[request.param])), window=2)


@pytest.fixture(scope="module")
def tokenizer() -> BytePair:
    tokenizer = BytePair(vocab_size=320, languages=("en", "de"))
    tokenizer.fit(Pictures(NUM_EXAMPLES).captions())
    return tokenizer


@pytest.fixture(scope="module")
def stream(data: Data, tokenizer: BytePair) -> list[Sample]:
    """The first ``STREAM`` examples of the run that is never interrupted."""
    settings = {"batch_size": 1, "seed": SEED, "captions_per_image": 2, "shuffle_window": data.window}
    loader = make_loader(tokenizer, data.source, **settings)
    return [sample for batch in islice(loader, STREAM) for sample in samples_of(batch)]


def assert_continues(loaders: list[TrainLoader], count: int, stream: list[Sample], position: int) -> None:
    """The next batches are those of ``stream`` from ``position`` on, and every rank says how far that is."""
    for shares in global_batches(loaders, count):
        found = [sample for share in shares for sample in samples_of(share)]
        expected = stream[position : position + BATCH_SIZE]
        assert [sample.id for sample in found] == [sample.id for sample in expected]
        assert all(one.equals(other) for one, other in zip(found, expected, strict=True))
        assert {len(share.ids) for share in shares} == {BATCH_SIZE // len(loaders)}
        position += BATCH_SIZE
        assert [loader.position for loader in loaders] == [position] * len(loaders)


def test_the_stream_is_one_shuffle_of_everything_after_another(stream):
    epochs = [stream[start : start + NUM_EXAMPLES] for start in range(0, STREAM, NUM_EXAMPLES)]
    orders = [[sample.id for sample in epoch] for epoch in epochs]
    assert all(len(set(order)) == NUM_EXAMPLES for order in orders), "no example twice, none left out"
    assert all(one != other for one, other in pairwise(orders)), "shuffled anew"
    first, second = ({sample.id: sample for sample in epoch} for epoch in epochs[:2])
    assert not any(first[name].equals(second[name]) for name in first), "augmented anew"


@pytest.mark.parametrize("data", ["folder", "several shards"], indirect=True)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("position", range(2 * NUM_EXAMPLES))
def test_every_position_of_two_epochs_is_gone_on_from(data, tokenizer, stream, ranks, position):
    """Those in the middle of a batch too: the position is in examples, and ``train.batch_size`` may have changed."""
    loaders = Layout(ranks, 0).loaders(data.source, tokenizer, position, data.window)
    assert_continues(loaders, 4, stream, position)  # 32 examples: over an epoch's end


@FOLDER
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_workers_and_ranks_go_on_from_anywhere(data, tokenizer, stream, layout):
    """One after another, forwards and back: what the workers had prepared ahead is never given out."""
    loaders = layout.loaders(data.source, tokenizer, 0, data.window)
    for position in (16, 0, 37, 21, 22, 5):
        for loader in loaders:
            loader.position = position
        assert_continues(loaders, 3, stream, position)


@pytest.mark.parametrize(
    ("data", "order"),
    [
        pytest.param("folder", LAYOUTS, id="folder, growing"),
        pytest.param("folder", LAYOUTS[::-1], id="folder, shrinking"),
        pytest.param("several shards", LAYOUTS[::-1], id="several shards, shrinking"),
        pytest.param("one shard", LAYOUTS, id="one shard, growing"),
    ],
    indirect=["data"],
)
def test_a_run_that_is_resumed_by_others_again_and_again_sees_every_example_once_an_epoch(
    data, tokenizer, stream, order
):
    position, seen = 0, []
    for layout in order:
        loaders = layout.loaders(data.source, tokenizer, position, data.window)
        for shares in global_batches(loaders, 1):
            seen += [sample for share in shares for sample in samples_of(share)]
        (position,) = {loader.position for loader in loaders}
    assert position == len(seen) == len(LAYOUTS) * BATCH_SIZE
    assert all(one.equals(other) for one, other in zip(seen, stream, strict=False))
    for start in range(0, position - NUM_EXAMPLES + 1, NUM_EXAMPLES):
        assert len({sample.id for sample in seen[start : start + NUM_EXAMPLES]}) == NUM_EXAMPLES


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_cannot_be_decoded_and_text_alone_stay_at_their_place(tokenizer, tmp_path: Path, layout):
    """A rank whose share lacks an image has a smaller one; the others' are as they were, from any position."""
    source = write_folder(tmp_path, Pictures(NUM_EXAMPLES, corrupt=(3, 11), text_only=(5, 6)))
    whole, shared = Layout(1, 0).loaders(source, tokenizer, 13), layout.loaders(source, tokenizer, 13)
    for (expected,), shares in zip(global_batches(whole, 4), global_batches(shared, 4), strict=True):
        assert tuple(name for share in shares for name in share.ids) == expected.ids
        assert torch.equal(torch.cat([share.images for share in shares]), expected.images)
        assert tuple(caption for share in shares for caption in share.captions) == expected.captions
        assert tuple(name for share in shares for name in share.corrupt) == expected.corrupt
        text_only = torch.cat([share.image_index == TEXT_ONLY for share in shares])
        assert torch.equal(text_only, expected.image_index == TEXT_ONLY)


@FOLDER
@pytest.mark.parametrize("workers", [0, 1])
def test_a_share_of_which_nothing_can_be_decoded_is_empty(data, tokenizer, stream, tmp_path: Path, workers):
    """Or a run would end with more ranks, on one of them only, that goes on with fewer."""
    lost = [sample.id for sample in stream[2:4]]  # all that rank 1 of 4 has of the first batch
    numbers = tuple(number for number in range(NUM_EXAMPLES) if data.source[number].id in lost)
    source = write_folder(tmp_path, Pictures(NUM_EXAMPLES, corrupt=numbers))
    (shares,) = global_batches(Layout(4, workers).loaders(source, tokenizer, 0), 1)
    assert [len(share.ids) for share in shares] == [2, 0, 2, 2]
    assert [len(share.corrupt) for share in shares] == [0, 2, 0, 0]
    empty = shares[1]
    assert empty.images.shape == (0, 3, 16, 16)
    assert len(empty.captions) == len(empty.tokens) == int(empty.num_targets) == 0


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_batch_of_which_nothing_can_be_decoded_is_refused_by_all_ranks_alike(tokenizer, tmp_path: Path, ranks):
    source = write_folder(tmp_path, Pictures(NUM_EXAMPLES, corrupt=tuple(range(NUM_EXAMPLES))))
    said = set()
    for loader in Layout(ranks, 0).loaders(source, tokenizer, 5):
        with pytest.raises(UserError, match=f"all {BATCH_SIZE} images of a batch are corrupt") as error:
            next(iter(loader))
        said.add(str(error.value))
    assert len(said) == 1
