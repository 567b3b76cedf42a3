"""The protocol beside the scores: what changes its hash, and what evaluators of a later day add to it."""

import contextlib
import json

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.evaluation.evaluate import Evaluation
from mmlm.evaluation.evaluators import Retrieval
from mmlm.evaluation.protocol import examples_digest, protocol_of
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.evaluation.zero_shot import ZeroShot
from tests.evaluation.hand_made import ExampleList, evaluation_batches, fitted_tokenizer, small_model


def examples(words=("a cat", "a dog", "a fish")):
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    return [Example(f"{row}", pixels, (Caption(text),), f"thing {row}") for row, text in enumerate(words)]


def test_examples_and_rules_change_the_hash_and_the_batch_size_does_not(make_split):
    split = make_split(examples())
    assert examples_digest(split) == examples_digest(make_split(examples(), batch_size=1))
    assert examples_digest(split) != examples_digest(make_split(examples(("a cat", "a dog", "fish"))))
    assert examples_digest(split) != examples_digest(make_split(examples()[::-1]))
    hashes = {
        protocol_of(split, evaluators, precision).as_json()["hash"]
        for evaluators, precision in (
            ({"retrieval": Retrieval()}, "fp32"),
            ({"retrieval": Retrieval()}, "bf16"),
            ({"retrieval": Retrieval("coco")}, "fp32"),
            ({"zero_shot": ZeroShot()}, "fp32"),
            ({"zero_shot": ZeroShot(["a photo of {}"])}, "fp32"),
        )
    }
    assert len(hashes) == 5
    entry = protocol_of(split, {"retrieval": Retrieval()}, "fp32", "at a fraction").as_json()
    assert entry["decoding"] == "at a fraction"
    assert entry["hash"] not in hashes
    assert "decoding" not in protocol_of(split, {}, "fp32").as_json()


@pytest.fixture
def write(tmp_path):
    """``write(evaluators, words)``: what ``scores.json`` then holds."""
    tokenizer = fitted_tokenizer(examples())
    model = small_model(tokenizer)

    def evaluate(evaluators, words=("a cat", "a dog", "a fish")):
        evaluation = Evaluation(
            model, tokenizer, evaluators, 24, torch.device("cpu"), contextlib.nullcontext, precision="fp32"
        )
        batches = evaluation_batches(ExampleList(examples(words)), tokenizer, 3)
        evaluation.write(tmp_path, 1, {"val": batches}, SampleSettings(examples=1, queries=1, attention=0), None)
        return json.loads((tmp_path / "scores.json").read_text())

    return evaluate


def test_a_later_evaluator_adds_its_rules_and_other_examples_replace_all(write):
    first = write({"retrieval": Retrieval()})
    assert first["protocols"]["val"]["evaluators"]["retrieval"]["protocol"] == "distinct"
    both = write({"zero_shot": ZeroShot()})
    assert both["protocols"]["val"]["evaluators"].keys() == {"retrieval", "zero_shot"}
    assert both["protocols"]["val"]["hash"] != first["protocols"]["val"]["hash"]
    assert {"image_to_text/R@1", "zero_shot/top1"} <= both["splits"]["val"].keys()
    other = write({"zero_shot": ZeroShot()}, ("a cat", "a dog", "fish"))
    assert other["protocols"]["val"]["evaluators"].keys() == {"zero_shot"}
    assert "image_to_text/R@1" not in other["splits"]["val"]
