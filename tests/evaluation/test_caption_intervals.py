"""The scores of captions with their intervals and their levels of chance."""

import pytest
import torch

from mmlm.core.intervals import wilson
from mmlm.evaluation.caption_intervals import bleu_intervals, with_intervals
from mmlm.evaluation.caption_scores import score_captions

CAPTIONS = ["a red cat", "a blue dog on a mat", "a green bird", "two fish in a bowl"]


def test_captions_with_intervals_and_chance():
    truths = [["a red cat"], ["a blue dog on a mat", "a dog"], ["a yellow bird"], ["three fish in a big bowl"]]
    values = dict(with_intervals(CAPTIONS, truths, torch.arange(4)))
    plain = dict(score_captions(CAPTIONS, truths).items())
    assert {name: values[name] for name in plain} == plain
    assert values["captioned"] == 4
    assert (values["exact/low"], values["exact/high"]) == pytest.approx(wilson(0.5, 4))
    assert values["exact/chance"] == 0
    for name in ("CIDEr-D", "ROUGE-L", "BLEU-1", "BLEU-4"):
        assert values[f"{name}/low"] <= values[name] <= values[f"{name}/high"]
        assert values[f"{name}/low"] < values[f"{name}/high"]
        assert values[f"{name}/chance"] < values[name]
    alone = dict(with_intervals(CAPTIONS[:1], truths[:1], torch.zeros(1)))
    assert "exact/chance" not in alone, "there is no other image"


def test_bleu_of_equal_examples_is_certain():
    said, true = ["a", "blue", "dog", "on", "a", "mat"], ["a", "blue", "dog", "on", "a", "rug"]
    intervals = bleu_intervals([said] * 5, [[true]] * 5, torch.arange(5))
    whole = dict(score_captions(CAPTIONS[1:2] * 5, [["a blue dog on a rug"]] * 5).items())
    for order, (low, high) in enumerate(intervals, start=1):
        assert low == pytest.approx(high) == pytest.approx(whole[f"BLEU-{order}"])
