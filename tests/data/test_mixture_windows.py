"""A mixture by windows of shards: its shares are exact in every epoch, and each source is read shard by shard."""

from collections import Counter
from itertools import islice

import pytest
import torch

from mmlm.core.errors import ArgumentError
from mmlm.data import mixture_windows
from mmlm.data.mixture import Mixture
from mmlm.data.order import EpochOrder
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.saved_dataset import SavedDataset
from tests.data.pictures import Pictures
from tests.data.tables import pictures_table, write_parquet, write_saved
from tests.data.test_loader import make_loader
from tests.data.test_order import Shards

LARGE, SMALL = Shards((3, 1, 0, 7, 2, 5, 4, 1, 8, 6)), Shards((2, 2, 1))
SOURCES = {"large": LARGE, "small": SMALL, "plain": Pictures(4)}
SETTINGS = [
    {},
    {"passes": {"small": 3}},
    {"weights": {"large": 1, "small": 1, "plain": 2}, "examples": 31},
    {"temperature": 5},
    {"weights": {"large": 1000, "small": 1, "plain": 1}, "examples": 10},
]


def located(mixture: Mixture, indices: list[int]) -> list[tuple[str, int]]:
    """The source and the row of each index."""
    found = [mixture._find(index) for index in indices]
    return [(name, row) for name, _, row in found]


@pytest.fixture(params=[3, 8192])
def block(request, monkeypatch) -> int:
    monkeypatch.setattr(mixture_windows, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("window", [1, 3])
def test_each_epoch_has_its_shares_and_each_source_comes_in_whole_passes(block, settings, window):
    mixture = Mixture(SOURCES, **settings)
    order = EpochOrder(mixture, 7, window)
    size = mixture.examples_per_epoch
    rows: dict[str, list[int]] = {name: [] for name in SOURCES}
    for epoch in range(6):
        indices = order.at(torch.arange(size) + epoch * size).indices.tolist()
        assert len(set(indices)) == size
        found = located(mixture, indices)
        counts = Counter(name for name, _ in found)
        assert {name: counts[name] for name in SOURCES} == {n: share.count for n, share in mixture._shares.items()}
        for name, row in found:
            rows[name].append(row)
        for place in range(size):
            seen = Counter(name for name, _ in found[:place])
            for name, share in mixture._shares.items():
                # Everywhere in the epoch a source has come in proportion, to a block.
                assert abs(seen[name] - share.count * place / size) <= min(block, size) + 1
    for name, source in SOURCES.items():
        # Of whole passes only: a block may hold the end of one pass and the beginning of the next.
        counts = Counter(rows[name])
        assert max(counts.values()) - min(counts[row] for row in range(len(source))) <= 1, name


@pytest.mark.parametrize("window", [1, 2])
def test_few_shards_of_each_source_are_read_at_a_time(monkeypatch, window):
    monkeypatch.setattr(mixture_windows, "BLOCK", 3)
    mixture = Mixture(SOURCES)
    for epoch in range(5):
        size = mixture.examples_per_epoch
        found = located(mixture, EpochOrder(mixture, 2, window).at(torch.arange(size) + epoch * size).indices.tolist())
        for name, source in (("large", LARGE), ("small", SMALL)):
            shards = [source.shard_of(row) if of == name else None for of, row in found]
            spans = {s: (shards.index(s), size - shards[::-1].index(s)) for s in set(shards) - {None}}
            for place in range(size):
                # Those of a window, and of the next one within a block at the border.
                assert sum(first <= place < end for first, end in spans.values()) <= 2 * window + 1


def test_it_is_a_function_of_the_position_alone(block):
    mixture = Mixture(SOURCES, weights={"large": 1, "small": 2, "plain": 2}, examples=37)
    positions = torch.arange(3 * 37)
    whole = EpochOrder(mixture, 1, 2).at(positions)
    again = EpochOrder(mixture, 1, 2)
    shuffled = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))]
    for piece in shuffled.split(5):
        assert torch.equal(again.at(piece).indices, whole.indices[piece])
    assert not torch.equal(EpochOrder(mixture, 2, 2).at(positions).indices, whole.indices)


def test_far_into_a_large_mixture(monkeypatch):
    """A billion examples, at a position beyond 10 ** 12: whole numbers throughout."""
    many = Shards((10**7,) * 90)
    mixture = Mixture({"many": many, "few": Shards((10**6,) * 100)})
    order = EpochOrder(mixture, 0, 4)
    size = mixture.examples_per_epoch
    start = 10**12 // size * size + size - 5000
    found = order.at(torch.arange(start, start + 10000)).indices
    assert len(set(found[:5000].tolist())) == len(set(found[5000:].tolist())) == 5000
    counts = Counter(name for name, _ in located(mixture, found.tolist()))
    assert abs(counts["many"] - 9000) < 800
    assert len({row // 10**7 for name, row in located(mixture, found[:5000].tolist()) if name == "many"}) <= 4


def test_a_mixture_without_shards_is_refused():
    with pytest.raises(ArgumentError, match="shuffle_window=2 wants a source with shards, and the mixture has none"):
        EpochOrder(Mixture({"a": Pictures(3), "b": Pictures(2)}), 0, 2)


@pytest.mark.parametrize("kind", ["parquet", "mixture", "saved"])
def test_interrupted_six_times_with_other_ranks_it_goes_on_exactly(tmp_path, tokenizer, kind, monkeypatch):
    monkeypatch.setattr(mixture_windows, "BLOCK", 5)
    source = ParquetTable(write_parquet(tmp_path / "a.parquet", pictures_table(range(11)), 3), id_column="id")
    if kind != "parquet":
        saved = SavedDataset(write_saved(tmp_path / "saved", [pictures_table(range(5))], 2), id_column="id")
        source = saved if kind == "saved" else Mixture({"a": source, "b": saved}, weights={"a": 1, "b": 1}, examples=13)
    settings = {"captions_per_image": 1, "shuffle_window": 2, "seed": 5}
    whole = [id for batch in islice(make_loader(tokenizer, source, batch_size=4, **settings), 14) for id in batch.ids]
    position, found = 0, []
    for ranks, batches in ((1, 1), (2, 3), (4, 1), (1, 4), (4, 3), (2, 2)):
        loaders = [
            make_loader(tokenizer, source, batch_size=4, rank=rank, world_size=ranks, **settings)
            for rank in range(ranks)
        ]
        for loader in loaders:
            loader.position = position
        for shares in zip(*(islice(loader, batches) for loader in loaders), strict=True):
            found += [id for batch in shares for id in batch.ids]
        position = loaders[0].position
    assert found == whole
