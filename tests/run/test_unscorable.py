"""Validation that cannot be scored: told before the first step, or it costs no more than it has to."""

import json
import re

import pytest

from mmlm import evaluate
from mmlm.experiment.run_identity import run_folder

LINES = [{"image": f"{c}_{s}.png", "caption": f"a {c} {s}"} for c in ("red", "green", "blue") for s in ("square",)]


@pytest.fixture
def validation(shapes, write_captions, tmp_path):
    """``validation(lines)``: the overrides of a split of these lines about the images of ``shapes``."""

    def make(lines):
        folder = tmp_path / "validation"
        write_captions(folder, lines)
        for image in shapes.glob("*.png"):
            (folder / image.name).write_bytes(image.read_bytes())
        return (f"data.validation.validation.folder={folder}", "train.eval_every=1", "train.steps=2")

    return make


@pytest.mark.parametrize(
    ("lines", "overrides", "message"),
    [
        (
            [{**LINES[0], "language": "xx"}, *LINES[1:]],
            (),
            "data.validation.validation: 'red_square.png': a caption's ",
        ),
        ([{"image": "red_square.png", "captions": []}], (), "data.validation.validation: it has no caption to score"),
        ([{"image": None, "caption": "a text"}], (), "data.validation.validation: it holds no image, only texts; eval"),
        (LINES, ("data.language=en",), "data.language: 'en', and all 8 captions of data.train are in no language"),
        (LINES[:1], ("evaluators=retrieval",), "data.validation.validation: it has 1 image with a caption, of 1 conc"),
        (
            LINES[:1],
            ("train.best_metric=validation/image_use_gap/mean",),
            "train.best_metric: 'validation/image_use_gap/mean' is not evaluated: evaluators.image_use_gap is left out",
        ),
        (
            LINES[:1],
            ("train.best_metric=validation/image_to_text/R@1",),
            "train.best_metric: 'validation/image_to_text/R@1' is not evaluated: evaluators.retrieval is left out of",
        ),
    ],
)
def test_refused_before_the_first_step(train_tiny, validation, tmp_path, lines, overrides, message):
    outcome = train_tiny(*validation(lines), *overrides)
    assert outcome.mistake.startswith(message)
    assert "step 1" not in outcome.out
    assert not (tmp_path / "runs").exists()


def test_tagged_captions_without_a_language_to_write_in(train_tiny, shapes, write_captions, tmp_path):
    lines = [{"image": image.name, "caption": image.stem, "language": "en"} for image in sorted(shapes.glob("*.png"))]
    write_captions(shapes, lines)
    refused = train_tiny().mistake
    assert re.match(
        r"data\.language: null, and all 8 captions of data\.train are in 'en'.*; set data\.language=en", refused
    )
    assert not (tmp_path / "runs").exists()
    assert train_tiny("data.language=en").status == 0


def test_what_has_no_score_is_left_out_and_told_once(train_tiny, tiny_config, command, validation):
    most = [{**line, "concept": "thing"} for line in LINES]
    odd = [*most, {"image": "yellow_circle.png", "captions": []}, {"image": None, "caption": "a text"}]
    overrides = validation(odd)
    outcome = train_tiny(*overrides)
    assert (outcome.status, outcome.err) == (0, "")
    before, _, after = outcome.out.partition("step 1")
    told = [line for line in before.splitlines() if line.startswith("validation: ")]
    assert told[0].startswith("validation: without evaluators.retrieval: it has 3 images with a caption, of 1 concept")
    assert told[1].startswith("validation: without evaluators.image_use_gap: it has 3 images with a caption, of 1 conc")
    assert told[2:] == [
        "validation: 1 of 4 images has no caption (first: 'yellow_circle.png'); not scored by loss, captioning",
        "validation: 1 of 5 examples is text alone (first: 'line 5'); not scored by captioning",
    ]
    assert "evaluators." not in after
    folder = run_folder(tiny_config(*overrides))
    scores = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    assert {name.split("/")[0] for name in scores} == {"images", "captions", "loss", "captioning"}
    again = command(evaluate, f"run={folder}")
    assert all(line in again.out for line in told)
    assert json.loads((folder / "scores.json").read_text())["splits"]["validation"] == scores
    assert command(evaluate, f"run={folder}", "evaluators=retrieval").mistake.startswith("data.validation.validation: ")


FAILING = """
from mmlm.core.errors import UserError

class Failing:
    needs_decoder = False
    figures = {}
    def __init__(self, how):
        self.how = how
    def __call__(self, split):
        yield "some", 1.0
        if self.how == "mistake":
            raise UserError("it has too few cats")
        if self.how == "bug":
            {}["cat"]
        yield "none", split.image_embedding[0] if self.how == "tensor" else 2.0
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("mistake", r"it has too few cats"),
        ("bug", r"KeyError: 'cat' \(.*failing\.py, line 14\)"),
        ("tensor", r"TypeError: Object of type Tensor is not JSON serializable \(.*\)"),
    ],
)
def test_an_evaluator_that_fails_costs_its_own_scores(train_tiny, tiny_config, tmp_path, monkeypatch, how, said):
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = (
        "plugins=[failing]",
        f"+evaluators.own={{_target_: failing.Failing, how: {how}}}",
        "train.eval_every=2",
    )
    outcome = train_tiny(*overrides)
    assert (outcome.status, outcome.err) == (0, "")
    told = [line for line in outcome.out.splitlines() if "evaluators.own" in line]
    assert len(told) == 3, "after step 2, after the last step, and of the weights that are exported"
    assert re.fullmatch(f"validation: no scores of evaluators.own: {said}", told[0])
    folder = run_folder(tiny_config(*overrides))
    scores = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    assert {"image_to_text/R@1", "captioning/CIDEr-D", "image_use_gap/mean"} <= scores.keys()
    assert not any(name.startswith("own/") for name in scores)
    assert (folder / "report.html").exists()


def test_an_evaluator_that_fails_and_chooses_the_best(train_tiny, tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("plugins=[failing]", "+evaluators.own={_target_: failing.Failing, how: mistake}")
    outcome = train_tiny(*own, "train.best_metric=validation/own/some")
    assert "validation: no scores of evaluators.own: it has too few cats" in outcome.out
    assert outcome.mistake.startswith("train.best_metric: 'validation/own/some' is not evaluated; there are: ")


def test_captions_that_are_cut_are_told(train_tiny):
    assert (
        "data.train: 8 of 8 captions are longer than data.max_tokens=3 and lose their tail"
        in train_tiny("data.max_tokens=3", "train.steps=1").out
    )


def test_a_caption_in_the_place_of_an_image(train_tiny, shapes, write_captions):
    write_captions(shapes, [{"image": "a long text " * 40, "caption": "red.png"}])
    refused = train_tiny("train.batch_size=1").mistake
    assert re.search(
        r"there is no such file \(1 of 1 images are missing\), first in line 1 of captions\.jsonl; add", refused
    )
