"""Captions that the training data have: which texts read alike, and the shares of a split by hand."""

from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import UserError
from mmlm.evaluation.copied import Copied
from mmlm.evaluation.training_captions import TrainingCaptions, digest_of
from mmlm.evaluation.written_captions import GREEDY

TRAINING = ["A cat.", "a dog runs", "two  birds", "a cat", "猫"]
TRUE = [("a cat", "the cat"), ("A DOG, runs!",), ("birds",), ("a fish",)]
SAID = ["a cat", "a cat", "a bird", "two birds"]


@pytest.fixture
def read():
    """How often the training captions have been listed."""
    return []


@pytest.fixture
def split(make_split, read):
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    rows = [Example(f"image{n}", pixels, tuple(map(Caption, own)), f"concept{n // 2}") for n, own in enumerate(TRUE)]

    def captions():
        read.append(True)
        return map(Caption, TRAINING)

    made = replace(make_split(rows), trained_on=TrainingCaptions(captions))
    made.written[None, GREEDY.in_words] = SAID
    return made


def test_texts_that_read_alike_have_one_digest():
    assert len({digest_of(text) for text in ("A cat.", "a  cat", " a cat!", "“A CAT”", "a-cat", "Ａ cat")}) == 1
    assert len({digest_of(text) for text in ("a cat", "acat", "cat a", "a cats", "", "猫", "é", "e")}) == 8
    assert digest_of("e\u0301") == digest_of("é") < 2**64
    assert digest_of("\ud83d") == digest_of("")  # half a character is in no word, and costs nobody a run


def test_training_captions_are_read_once_and_known(read):
    def captions():
        read.append(True)
        return map(Caption, TRAINING)

    known = TrainingCaptions(captions)
    assert read == []
    assert known.hold(["a cat", "cat", "Two birds.", "猫"]) == [True, False, True, True]
    assert known.hold([]) == []
    assert len(known) == 4
    assert read == [True]
    assert TrainingCaptions(list).hold(["a"]) == [False]


def test_shares_by_hand(split, read):
    evaluator = Copied()
    values = dict(evaluator(split))
    assert values["written"] == 3 / 4
    assert values["true"] == 2 / 5
    assert (values["scored"], values["training_captions"]) == (4, 4)
    declared = {*evaluator.figures, *(name for one in evaluator.figures.values() for name in one.helpers())}
    assert values.keys() == declared
    for name in evaluator.figures:
        assert values[f"{name}/low"] <= values[name] <= values[f"{name}/high"]
    (items,) = evaluator.per_item(split)
    assert items.values.tolist() == [1, 1, 0, 1]
    assert items.outputs == SAID
    assert read == [True]


def test_unknown_training_data_are_one_line(split):
    with pytest.raises(UserError, match="the captions that the model was trained on are not known here"):
        dict(Copied()(replace(split, trained_on=None)))
