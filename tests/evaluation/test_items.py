"""What is written down of each image and text: ranks as by sorting, what was taken for what, and never too much."""

import json

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.data.attributes import MOST_FOLDERS, attributes_of
from mmlm.data.emoji import Emoji
from mmlm.evaluation.items import collect_items, split_ranks
from mmlm.evaluation.samples import extreme_rows
from mmlm.evaluation.split import EncodedSplit
from mmlm.evaluation.written_captions import generate_captions
from tests.evaluation.hand_made import ExampleList

TEXTS = (("a red cat", "eine Katze"), ("a dog on a mat",), ("a bird",), (), ("a red cat",))
"""Of five images; the last shows what the first does, and the fourth has no caption."""


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, texts in enumerate(TEXTS):
        image = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
        captions = tuple(Caption(text, "de" if "eine" in text else "en") for text in texts)
        made.append(Example(f"{'ann' if number < 2 else 'bob'}/{number}", image, captions))
    return [*made, Example("text", None, (Caption("nothing to see", "en"),))]


@pytest.fixture
def split(make_split) -> EncodedSplit:
    return make_split(examples(), languages=("en", "de"))


def test_columns_against_sorting(split):
    items = collect_items(split, "en", split_ranks(split), attributes_of(ExampleList(examples())))
    assert json.loads(json.dumps(items)) == items
    images, texts = items["images"], items["texts"]
    assert items["of"] == {"images": 5, "texts": 5}
    assert images["id"] == ["ann/0", "ann/1", "bob/2", "bob/3", "bob/4"]
    assert images["shown"] == ["a red cat", "a dog on a mat", "a bird", None, "a red cat"]
    assert images["words"] == [3, 5, 2, None, 3]
    gallery = split.gallery
    assert gallery.texts == ("a red cat", "eine Katze", "a dog on a mat", "a bird", "nothing to see")
    own = {0: {0, 1}, 1: {2}, 2: {3}, 4: {0}}
    similarity = gallery.image_embedding @ gallery.text_embedding[:4].T
    for row in range(5):
        order = similarity[row].argsort(descending=True).tolist()
        first = min((order.index(text) for text in own.get(row, ())), default=None)
        wrong_before = None if first is None else 1 + sum(text not in own[row] for text in order[:first])
        assert images["rank"][row] == wrong_before
        label = ["a red cat", "a red cat", "a dog on a mat", "a bird"][order[0]]
        assert images["wrong"][row] == (None if order[0] in own.get(row, ()) else label)
    generated = generate_captions(split, "en")
    assert images["said"] == [said if len(said) <= 120 else f"{said[:117]}..." for said in generated]
    assert images["exact"] == [False, False, False, None, False]
    assert [value is None for value in images["cider"]] == [False, False, False, True, False]
    assert texts["language"] == ["en", "de", "en", "en", "en"]
    assert texts["words"] == [3, 2, 5, 2, 3]
    assert texts["rank"][4] is None
    others = similarity[[0, 1, 2, 4]]
    assert texts["rank"][2] == 1 + int((others[:, 2] > others[1, 2]).sum())


def test_a_large_split_is_thinned_out_evenly(split):
    items = collect_items(split, "en", split_ranks(split), {}, most=2)
    assert items["of"] == {"images": 5, "texts": 5}
    assert items["images"]["id"] == ["ann/1", "bob/3"]
    assert {len(column) for column in items["texts"].values()} == {2}


def test_embeddings_that_are_not_finite_have_no_ranks(split):
    split.gallery.image_embedding[2] = torch.nan
    ranks = split_ranks(split)
    assert (ranks.images, ranks.texts) == ({}, {})
    items = collect_items(split, "en", ranks, {})
    assert items["images"]["rank"] == items["images"]["wrong"] == [None] * 5


class Listed(ExampleList):
    """A source that lists its texts."""

    def texts(self):
        """The examples stand for themselves: they have ids."""
        yield from self


def test_attributes_are_a_sources_own_or_else_the_folders_of_its_ids():
    found = attributes_of(Emoji("val_concepts"))
    assert set(found) == {"artist", "group"}
    assert set(found["artist"].values()) == {"noto", "twemoji", "noto_v1", "fxemoji"}
    assert found["artist"].keys() == found["group"].keys()
    assert {"Smileys & Emotion", "Animals & Nature"} <= set(found["group"].values())
    assert attributes_of(Listed(examples())) == {
        "folder": {f"{'ann' if n < 2 else 'bob'}/{n}": "ann" if n < 2 else "bob" for n in range(5)}
    }
    plain = [Example(str(n), None, ()) for n in range(3)]
    many = [Example(f"folder{n}/x", None, ()) for n in range(MOST_FOLDERS + 1)]
    for none in (plain, [Example(f"one/{n}", None, ()) for n in range(3)], many):
        assert attributes_of(Listed(none)) == {}


def test_the_worst_typical_and_best():
    ranks = dict(enumerate((3, 1, 9, 1, 4, 1, 7, 2, 1)))
    exact = [row in (5, 8) for row in range(9)]
    assert extreme_rows(ranks, exact, 2) == {"worst": [2, 6], "typical": [3, 7], "best": [5, 8]}
    alike = extreme_rows(dict.fromkeys(range(90), 1), [True] * 90, 3)
    assert len({row for rows in alike.values() for row in rows}) == 9, "no image is shown twice"
    assert extreme_rows({0: 1, 1: 2}, [False, False], 4) == {}
    assert extreme_rows({}, [], 4) == {}
