"""Some examples of a source have shards and encoded images where the source has."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from mmlm.core.errors import ArgumentError
from mmlm.data.chosen import Chosen
from mmlm.data.mixture import Mixture
from mmlm.data.order import EpochOrder, has_shards
from mmlm.data.own import OwnImages
from mmlm.data.recognise import recognise
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import gives_bytes, texts_of
from mmlm.data.tar_shards import TarShards
from mmlm.data.without import Without
from tests.data.pictures import Pictures
from tests.data.tars import sample, write_shards, write_tar
from tests.data.test_order import Shards

SIZES = (4, 3, 5, 2, 1)


@pytest.fixture
def shards(tmp_path):
    """Fifteen pictures in five shards, and a text without an image."""
    write_shards(tmp_path / "tars", Pictures(14), SIZES[:4])
    write_tar(tmp_path / "tars" / "00004.tar", [*sample("last"), ("a.txt", "alone")])
    return tmp_path / "tars"


def test_what_is_left_of_each_shard_is_read_by_windows(shards, tmp_path):
    source = TarShards(shards)
    ids = [texts.id for texts in source.texts()]
    dropped = [0, 4, 5, 6, 11, 14]
    (tmp_path / "drop.txt").write_text("\n".join(ids[row] for row in dropped))
    left = pickle.loads(pickle.dumps(Without(source, tmp_path / "drop.txt")))
    assert list(left.shard_sizes()) == [3, 0, 4, 2, 0]
    kept = [row for row in range(15) if row not in dropped]
    assert [left.encoded(place) for place in range(9)] == [source.encoded(row) for row in kept]
    order = [left[index].id for index in EpochOrder(left, 0, 1).at(torch.arange(9)).indices.tolist()]
    assert sorted(order) == sorted(ids[row] for row in kept)
    assert len([1 for one, other in pairwise(order) if one[:9] != other[:9]]) == 2
    assert remarks_of(left) == remarks_of(source) != []


def test_one_s_own_images_and_a_language_pass_both_on(shards):
    for source in (OwnImages(str(shards), "train", language="en"), recognise(shards, "de").source):
        assert has_shards(source)
        assert gives_bytes(source)
        assert sum(source.shard_sizes()) == len(source)
        assert all(
            source.encoded(row) == TarShards(shards).encoded(0) for row in range(1) if source[row].id[-2:] == "/0"
        )
    parts = [OwnImages(str(shards), part) for part in ("train", "validation")]
    assert [sum(sizes) for sizes in zip(*(part.shard_sizes() for part in parts), strict=True)] == [*SIZES]


def test_a_source_that_wraps_can_do_no_more_than_what_it_wraps(shapes):
    pictures = Pictures(5)
    some = Chosen(pictures, np.array([1, 3]))
    assert gives_bytes(some)
    assert some.encoded(1) == pictures.encoded(3)
    assert not has_shards(some)
    with pytest.raises(ArgumentError, match="shuffle_window=2 wants a source with shards, which OwnImages has not"):
        EpochOrder(OwnImages(str(shapes)), 0, 2)
    without_bytes = Chosen(Shards(), np.array([0, 2]))
    assert has_shards(without_bytes)
    assert not gives_bytes(without_bytes)
    mixture = Mixture({"a": pictures, "b": Shards()})
    assert not gives_bytes(mixture)
    mixture = Mixture({"a": pictures, "b": some}, {"b": 2})
    assert gives_bytes(mixture)
    encoded = [mixture.encoded(index) for index in range(len(mixture))]
    assert encoded == [pictures.encoded(row) for row in (0, 1, 2, 3, 4, 1, 3, 1, 3)]


def test_texts_of_few_examples_of_many():
    kept = np.array([0, 3, 9])
    assert [texts.id for texts in texts_of(Chosen(Pictures(10), kept))] == ["picture/0", "picture/3", "picture/9"]
