"""All evaluators over all splits: names, the precision they compute in, and the files that the report reads."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.evaluation.evaluate import Evaluation, evaluation_figures
from mmlm.evaluation.evaluators import CaptionLoss, ImageUse, Retrieval
from mmlm.evaluation.sample_settings import SampleSettings
from tests.evaluation.hand_made import ExampleList, evaluation_batches, fitted_tokenizer, small_model

CPU = torch.device("cpu")
EXAMPLES = [
    Example(name, torch.zeros(3, 16, 16, dtype=torch.uint8), (Caption(f"a {name}"), Caption("a thing")))
    for name in ("cat", "dog", "bird")
]
NONE = SampleSettings(examples=2, queries=1, attention=1)


class Counted:
    """An evaluator that yields the number of images, and what autocast was."""

    def __call__(self, split) -> Iterator[tuple[str, float]]:
        yield "images", float(len(split.image_concept))
        yield "autocast", float(torch.is_autocast_enabled("cpu"))


@pytest.fixture
def evaluation():
    """``evaluation(**evaluators)`` and the batches of its one split."""

    def make(computing=contextlib.nullcontext, **evaluators):
        tokenizer = fitted_tokenizer(EXAMPLES)
        batches = evaluation_batches(ExampleList(EXAMPLES), tokenizer, 2)
        return Evaluation(small_model(tokenizer), tokenizer, evaluators, 48, CPU, computing), batches

    return make


def test_values_are_named_after_split_and_evaluator(evaluation):
    made, batches = evaluation(loss=CaptionLoss(), retrieval=Retrieval(), counted=Counted())
    values = made.all_scores({"one": batches, "two": batches})
    assert {name.split("/", 1)[0] for name in values} == {"one", "two"}
    assert values["one/counted/images"] == 3
    assert values["one/loss/captioning"] == values["two/loss/captioning"] > 0
    assert "one/image_to_text/R@1" in values, "retrieval's names say it all"
    assert list(made.scores(made.encode("one", batches))) == [name[4:] for name in values if name.startswith("one/")]


def test_declarations_have_the_names_of_the_values(evaluation):
    evaluators = {"loss": CaptionLoss(), "retrieval": Retrieval(), "use": ImageUse()}
    made, batches = evaluation(**evaluators)
    figures = evaluation_figures(evaluators)
    names = {name for one, figure in figures.items() for name in (one, *figure.helpers())}
    assert names == made.scores(made.encode("one", batches)).keys()
    assert (figures["use/mean"].low, figures["use/mean"].high) == ("use/low", "use/high")
    assert figures["image_to_text/R@5"].share


def test_values_of_other_evaluators_on_the_same_weights_stay(evaluation, tmp_path):
    first, batches = evaluation(counted=Counted())
    first.write(tmp_path, 7, {"val": batches}, NONE, None)
    second, _ = evaluation(loss=CaptionLoss())
    second.write(tmp_path, 7, {"val": batches}, NONE, None)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["splits"]["val"]
    assert scores.keys() == {"images", "captions", "counted/images", "counted/autocast", "loss/captioning"}
    second.write(tmp_path, 8, {"val": batches}, NONE, None)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["splits"]["val"]
    assert scores.keys() == {"images", "captions", "loss/captioning"}, "those of other weights are dropped"


def test_everything_is_computed_in_the_context_given(evaluation):
    made, batches = evaluation(lambda: torch.autocast("cpu", torch.bfloat16), counted=Counted())
    split = made.encode("one", batches)
    assert made.scores(split)["counted/autocast"] == 1.0
    assert not torch.is_autocast_enabled("cpu")
    exact, _ = evaluation(counted=Counted())
    close = exact.encode("one", batches).batches[0].features.memory
    memory = split.batches[0].features.memory.float()
    assert not torch.equal(memory, close)
    torch.testing.assert_close(memory, close, rtol=0.1, atol=0.1)


def test_writes_scores_and_samples(evaluation, tmp_path):
    made, batches = evaluation(retrieval=Retrieval())
    returned = made.write(tmp_path, 7, {"val": batches}, NONE, None)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    protocol = scores.pop("protocols")["val"]
    assert protocol["evaluators"] == {"retrieval": dict(Retrieval().rules)}
    assert scores == {"step": 7, "splits": returned}
    assert scores["splits"]["val"]["images"] == 3
    assert scores["splits"]["val"]["captions"] == 4, "distinct texts"
    samples = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert samples["step"] == 7
    assert len(samples["splits"]["val"]["examples"]) == 2


def test_splits_of_the_same_weights_are_merged_and_others_dropped(evaluation, tmp_path):
    made, batches = evaluation(counted=Counted())

    def written(name):
        content = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        return content["step"], sorted(content["splits"])

    made.write(tmp_path, 7, {"val": batches}, NONE, None)
    made.write(tmp_path, 7, {"test": batches}, NONE, None)
    assert written("scores.json") == written("samples.json") == (7, ["test", "val"])
    fewer = evaluation_batches(ExampleList(EXAMPLES[:2]), made.tokenizer, 2)
    made.write(tmp_path, 7, {"val": fewer}, NONE, None)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["splits"]
    assert (scores["val"]["images"], scores["test"]["images"]) == (2, 3)
    made.write(tmp_path, 8, {"test": batches}, NONE, None)
    assert written("scores.json") == written("samples.json") == (8, ["test"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "items.json",
        "manifest.jsonl",
        "per_item.parquet",
        "samples.json",
        "scores.json",
    ]
    assert not list(tmp_path.glob(".*")), "no draft is left"


def test_a_sign_of_life_before_each_batch(evaluation):
    made, batches = evaluation(loss=CaptionLoss(), retrieval=Retrieval())
    said = []
    replace(made, tick=said.append).all_scores({"one": batches})
    assert said == [f"{doing} one, batch {number} of 2" for doing in ("encoding", "evaluating") for number in (1, 2)]
