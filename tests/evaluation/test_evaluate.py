"""All evaluators over all splits: names, the precision they compute in, and the files that the report reads."""

import contextlib
import json
from collections.abc import Iterator

import pytest
import torch

from mmlm.evaluation.evaluate import Evaluation
from mmlm.evaluation.evaluators import CaptionLoss, Retrieval
from mmlm.evaluation.samples import SampleSettings
from mmlm.flow import Caption, Example

CPU = torch.device("cpu")
NONE = SampleSettings(examples=2, queries=1, attention=1)


class Counted:
    """An evaluator that yields the number of images, and what autocast was."""

    def __call__(self, split) -> Iterator[tuple[str, float]]:
        yield "images", float(len(split.image_concept))
        yield "autocast", float(torch.is_autocast_enabled("cpu"))


@pytest.fixture
def evaluation(make_split):
    """``evaluation(**evaluators)`` and the batches of its one split."""

    def make(computing=contextlib.nullcontext, **evaluators):
        image = torch.zeros(3, 16, 16, dtype=torch.uint8)
        examples = [Example(name, image, (Caption(f"a {name}"), Caption("a thing"))) for name in ("cat", "dog", "bird")]
        split = make_split(examples, 2)
        batches = [item.batch for item in split.batches]
        return Evaluation(split.model, split.tokenizer, evaluators, 48, CPU, computing), batches

    return make


def test_values_are_named_after_split_and_evaluator(evaluation):
    made, batches = evaluation(loss=CaptionLoss(), retrieval=Retrieval(), counted=Counted())
    values = made.all_scores({"one": batches, "two": batches})
    assert {name.split("/", 1)[0] for name in values} == {"one", "two"}
    assert values["one/counted/images"] == 3
    assert values["one/loss/captioning"] == values["two/loss/captioning"] > 0
    assert "one/image_to_text/R@1" in values, "retrieval's names say it all"
    assert list(made.scores(made.encode("one", batches))) == [name[4:] for name in values if name.startswith("one/")]


def test_everything_is_computed_in_the_context_given(evaluation):
    made, batches = evaluation(lambda: torch.autocast("cpu", torch.bfloat16), counted=Counted())
    split = made.encode("one", batches)
    assert made.scores(split)["counted/autocast"] == 1.0
    assert not torch.is_autocast_enabled("cpu")
    exact, _ = evaluation(counted=Counted())
    close = exact.encode("one", batches).features.memory
    assert not torch.equal(split.features.memory.float(), close)
    torch.testing.assert_close(split.features.memory.float(), close, rtol=0.1, atol=0.1)


def test_writes_scores_and_samples(evaluation, tmp_path):
    made, batches = evaluation(retrieval=Retrieval())
    returned = made.write(tmp_path, 7, {"val": batches}, NONE, None)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
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
    made.write(tmp_path, 7, {"val": batches[:1]}, NONE, None)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["splits"]
    assert (scores["val"]["images"], scores["test"]["images"]) == (2, 3)
    made.write(tmp_path, 8, {"test": batches}, NONE, None)
    assert written("scores.json") == written("samples.json") == (8, ["test"])
