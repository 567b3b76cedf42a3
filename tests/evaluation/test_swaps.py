"""False captions made by exchanging words: what stays, what changes, and that it is drawn by seed and text."""

import re
from collections import Counter

import pytest

from mmlm.evaluation.swaps import LISTS, swaps

TEXT = "A small red car, parked beside two large blue boats."


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_each_kind_does_what_it_is_named_for():
    found = swaps(TEXT, 0)
    assert list(found) == ["swap_colour", "swap_size", "swap_neighbours", "swap_words", "shuffle"]
    assert found["swap_colour"] == "A small blue car, parked beside two large red boats."
    assert found["swap_size"] == "A large red car, parked beside two small blue boats."
    moved = {
        kind: [n for n, pair in enumerate(zip(words(TEXT), words(text), strict=True)) if pair[0] != pair[1]]
        for kind, text in found.items()
    }
    assert len(moved["swap_neighbours"]) == len(moved["swap_words"]) == 2
    assert moved["swap_neighbours"][1] - moved["swap_neighbours"][0] == 1
    assert len(moved["shuffle"]) > 2


@pytest.mark.parametrize("seed", range(5))
def test_no_word_is_lost_and_what_stands_between_words_stays(seed):
    for text in swaps(TEXT, seed).values():
        assert text != TEXT
        assert Counter(words(text)) == Counter(words(TEXT))
        assert re.sub(r"\w+", "_", text) == re.sub(r"\w+", "_", TEXT)
    assert len(set(swaps(TEXT, seed).values())) == len(swaps(TEXT, seed)) >= 4


def test_they_are_drawn_by_seed_and_text():
    assert swaps(TEXT, 3) == swaps(TEXT, 3)
    # Two words that an earlier kind has exchanged are not exchanged again.
    drawn = [swaps(TEXT, seed).get("swap_words", "") for seed in range(200)]
    # 10 words of which no two are equal: 45 pairs.
    assert len(set(drawn)) > 35
    assert max(Counter(filter(None, drawn)).values()) < 200 / 45 * 4


@pytest.mark.parametrize("text", ["", "cat", "cat cat cat", "...", "Cat cat"])
def test_nothing_is_made_where_no_exchange_changes_anything(text):
    assert swaps(text, 0) == {}


def test_words_of_any_script_and_with_apostrophes_are_words():
    assert swaps("женщина кошка", 0) == {"swap_neighbours": "кошка женщина"}
    assert swaps("man's dog-house", 0) == {"swap_neighbours": "dog-house man's"}


def test_lists_of_ones_own():
    found = swaps("a cat chases a dog", 0, {"animal": ("cat", "dog")})
    assert found["swap_animal"] == "a dog chases a cat"
    assert set(LISTS) == {"colour", "size"}
    assert not {"swap_colour", "swap_size"} & set(found)
