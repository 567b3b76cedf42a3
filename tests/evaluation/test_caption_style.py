"""How long and how varied captions are, by hand."""

import pytest
import torch

from mmlm.evaluation.caption_style import FIGURES, style_of

SAID = ["a cat and a cat", "a dog", "a dog"]
TRUE = [["a cat", "a cat and a big dog"], ["a dog and a cat"], ["dog", "a dog"]]


def values(said, true):
    words = ([text.split() for text in said], [[text.split() for text in texts] for texts in true])
    return dict(style_of(*words, torch.arange(len(said))))


def test_length_variety_and_repetition():
    found = values(SAID, TRUE)
    # 9 words; the nearest true ones have 6, 5 and 2.
    assert found["length_ratio"] == pytest.approx(9 / 13)
    # a, cat, and, dog of 9 words; "a cat", "cat and", "and a", "a dog" of 6 pairs.
    assert found["distinct-1"] == pytest.approx(4 / 9)
    assert found["distinct-2"] == pytest.approx(4 / 6)
    assert found["repetition"] == pytest.approx(1 / 3)
    for name in ("length_ratio", "repetition"):
        assert found[f"{name}/low"] <= found[name] <= found[f"{name}/high"]
    helpers = {helper for figure in FIGURES.values() for helper in figure.helpers()}
    assert found.keys() == FIGURES.keys() | helpers


def test_captions_without_words_have_no_variety():
    found = values(["", ""], [["a cat"], ["a dog"]])
    assert (found["length_ratio"], found["distinct-1"], found["distinct-2"], found["repetition"]) == (0, 0, 0, 0)
