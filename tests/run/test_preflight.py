"""The first batch: shown by ``preflight=true``, and refused where an objective has nothing to train on."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import Batch, Caption, Example, Turn
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stream
from mmlm.core.views import PatchView, StepKey, TextPattern, TextView, ViewInputs
from mmlm.data.collate import caption_encoder, collate, prepare
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from mmlm.model.model import ImageTextModel
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.objective import FusionObjective, Objective
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.run.preflight import Preflight, check_first_batch

MASKED, SOME = TextView("masked"), PatchView("some")


class Masked(Objective):
    """Draws masked words and kept patches; ``share`` of the images have something masked."""

    views = frozenset({MASKED, SOME})

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        masked = torch.zeros_like(batch.inputs, dtype=torch.bool)
        masked[:, 1] = True
        kept = torch.tensor([[0, 3]]).expand(len(batch.images), 2)
        return {MASKED: TextPattern(torch.full_like(batch.lengths, 2), masked), SOME: kept}

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        drawn = step_key.uniform(batch.image_key, 1, stream("my.masks"))[:, 0]
        return {"masked_patches": (drawn < self.share).sum()}


class Chosen(FusionObjective):
    """Chooses one pair an image."""

    pairs_per_image = 1


def sum_of(**parts: Objective) -> WeightedSum:
    return WeightedSum(parts, dict.fromkeys(parts, 1.0))


@pytest.fixture
def look() -> Callable[..., tuple[Batch, BytePair]]:
    """``look(*examples)``: a batch of them, of at most 6 tokens, and its tokenizer."""

    def make(*examples: Example, vocab_size: int = 400) -> tuple[Batch, BytePair]:
        tokenizer = BytePair(vocab_size, ["en"])
        tokenizer.fit([caption for example in examples for caption in example.captions])
        prepared = prepare(examples, Transform(8, None), None)
        return collate(prepared, caption_encoder(tokenizer, 6), tokenizer.pad_id, 6, bucket=2), tokenizer

    return make


def example(name: str, *texts: str, image: bool = True, language: str | None = "en") -> Example:
    pixels = torch.full((3, 8, 8), 9, dtype=torch.uint8) if image else None
    return Example(name, pixels, tuple(Caption(text, language) for text in texts))


def test_what_is_read_and_what_is_written_are_told_apart(look):
    turns = (Turn("a", "cat"),)
    answers = tuple(Caption("a", None, source="a cat", turns=given) for given in ((), turns))
    batch, tokenizer = look(Example("talk", None, answers))
    shown = Preflight(batch, tokenizer, sum_of(captioning=Captioning()), max_tokens=6).text()
    first, second, totals = shown.split("\n\n")
    a, cat = batch.tokens[0, 1:3].tolist()
    assert [" ".join(line.split()) for line in first.splitlines()] == [
        "text only: 'a', no language, 6 tokens",
        "an answer to 'a cat'",
        "input id target id supervised",
        f"0 <start> 2 'a' {a} no: it is read",
        f"1 'a' {a} ' cat' {cat} no: it is read",
        f"2 ' cat' {cat} <end> 1 no: it is read",
        f"3 <end> 1 'a' {a} yes",
        f"4 'a' {a} <end> 1 yes",
    ]
    assert [line.strip() for line in second.splitlines()[:3]] == [
        "text only: 'a', no language, 6 tokens, cut from 10",
        "after reading 'a' and writing 'cat'",
        "an answer to 'a cat'",
    ]
    assert "supervised tokens  4 " in totals


def test_a_batch_in_words(look):
    examples = (example("cat", "a red cat"), example("alone", "a cat", image=False, language=None), example("bare"))
    long = example("long", "a cat a cat a cat")
    batch, tokenizer = look(*examples, long)
    shown = Preflight(batch, tokenizer, sum_of(contrastive=InfoNCE(), masked=Masked()), max_tokens=6).text()
    cat, alone, cut, bare, totals = shown.split("\n\n")
    a, red, word = batch.tokens[0, 1:4].tolist()
    assert [" ".join(line.split()) for line in cat.splitlines()] == [
        "cat: 'a red cat', language en, 5 tokens",
        "image 3 x 8 x 8 uint8, values 9 to 9, mean 9.0",
        "input id target id supervised masked",
        f"0 <start> 3 'a' {a} yes visible",
        f"1 'a' {a} ' red' {red} yes masked",
        f"2 ' red' {red} ' cat' {word} yes causal",
        f"3 ' cat' {word} <end> 1 yes causal",
        "4 <end> 1 <pad> 0 no",
        "some: sees 2 patches: 0, 3",
    ]
    places = {line.index("yes") for line in cat.splitlines() if "yes" in line}
    assert places == {cat.splitlines()[2].index("supervised")}, "columns stand below each other"
    assert alone.startswith("text only: 'a cat', no language, 4 tokens\n")
    assert "<pad>" in alone
    assert "and 1 more of padding" in alone
    assert "image 3" not in alone
    assert "sees" not in alone
    assert cut.startswith("long: 'a cat a cat a cat', language en, 6 tokens, cut from 8\n")
    assert bare == "bare: image 3 x 8 x 8 uint8, values 9 to 9, mean 9.0; no caption"
    lines = [" ".join(line.split()) for line in totals.splitlines()]
    assert lines == [
        "this batch",
        "images 3 2 with a caption",
        "corrupt images 0",
        "captions 3 1 text only; languages: en, none",
        "supervised tokens 12 ends included, starts and padding not",
        "cut captions 1 longer than data.max_tokens=6",
        "unknown pieces 0 of captions, left out by the tokenizer",
        "contrastive 2 images with a caption",
        "masked 3 masked patches",
    ]


def test_at_most_three_captions_are_shown_a_text_only_one_among_them(look):
    examples = [example(f"image{i}", f"cat {i}") for i in range(5)]
    batch, tokenizer = look(*examples, example("alone", "a word", image=False))
    shown = Preflight(batch, tokenizer, sum_of(a=Captioning()), 6).text().split("\n\n")
    assert [block.partition(":")[0] for block in shown[:-1]] == ["image0", "image1", "text only"]


def test_bytes_that_are_no_character_yet_are_shown(look):
    batch, tokenizer = look(example("e", "é€"), vocab_size=260)
    shown = Preflight(batch, tokenizer, sum_of(a=Captioning()), 6).text()
    assert shown.splitlines()[0] == "e: 'é€', language en, 6 tokens, cut from 8"
    assert "<start>" in shown
    assert "\N{REPLACEMENT CHARACTER}" in shown


@pytest.mark.parametrize(
    ("name", "part", "found"),
    [
        ("contrastive", InfoNCE(), "0 images with a caption"),
        ("matching", Chosen(), "0 images with a caption"),
        ("captioning", Captioning(), "0 tokens"),
    ],
)
def test_nothing_to_train_on_is_refused_in_one_line(look, name, part, found):
    batch, _ = look(example("a"), example("b"))
    with pytest.raises(UserError) as caught:
        check_first_batch(sum_of(**{name: part}), batch, seed=0)
    assert str(caught.value) == (
        f"objective.objectives.{name}: the first batch has {found} (2 images, 0 captions), which trains nothing; look "
        f"at it with preflight=true, then give data.train what is missing or set objective.weights.{name}=0"
    )


def test_captions_without_images_are_enough_for_captioning_and_not_for_a_comparison(look):
    batch, _ = look(example("a", "a cat", image=False), example("b"))
    check_first_batch(sum_of(captioning=Captioning()), batch, seed=0)
    with pytest.raises(
        UserError, match=r"objectives\.contrastive: .* 0 images with a caption \(1 images, 1 captions\)"
    ):
        check_first_batch(sum_of(captioning=Captioning(), contrastive=InfoNCE()), batch, seed=0)


def test_what_is_not_drawn_at_the_first_step_may_be_drawn_at_another(look):
    batch, _ = look(example("a", "a cat"), example("b", "a dog"))
    seldom = Masked(0.3)
    seed = next(seed for seed in range(99) if not seldom.counts(batch, StepKey(seed))["masked_patches"])
    check_first_batch(sum_of(masked=seldom), batch, seed)
    with pytest.raises(UserError, match="0 masked patches"):
        check_first_batch(sum_of(masked=Masked(0.0)), batch, seed)


# The command


def test_preflight_prints_and_leaves_nothing(train_tiny, tmp_path):
    outcome = train_tiny("preflight=true")
    assert (outcome.status, outcome.err) == (0, "")
    for said in ("language None", "no language", "'a'", "<start>", "supervised tokens", "contrastive", "4 with a cap"):
        assert (said in outcome.out) == (said != "language None"), said
    assert not (tmp_path / "runs").exists()


def test_a_data_set_without_captions_stops_before_there_is_a_run(train_tiny, write_captions, shapes, tmp_path):
    write_captions(shapes, [{"image": path.name, "captions": []} for path in sorted(shapes.glob("*.png"))])
    refused = train_tiny()
    assert refused.mistake.startswith(
        "objective.objectives.contrastive: the first batch has 0 images with a caption (4"
    )
    assert not (tmp_path / "runs").exists()
    refused = train_tiny("objective.weights.contrastive=0", "preflight=true")
    assert refused.mistake.startswith("objective.objectives.captioning: the first batch has 0 tokens (4 images, 0 capt")
    assert "no caption" in refused.out
    assert not Path(tmp_path / "runs").exists()


EVALUATORS = """
import torch

class Broken:
    needs_decoder = False
    figures = {}
    def __init__(self, what="error"):
        self.what = what
    def __call__(self, split):
        if self.what == "error":
            {}["nothing"]
        yield "score", torch.zeros(()) if self.what == "tensor" else 1.0
"""


@pytest.fixture
def own_evaluators(tmp_path, monkeypatch) -> str:
    (tmp_path / "my_evaluators.py").write_text(EVALUATORS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "plugins=[my_evaluators]"


def test_preflight_tries_evaluation_and_report(train_tiny):
    outcome = train_tiny("preflight=true")
    assert (
        "validation: loss, retrieval, captioning, image_use_gap and the report's samples run on 8 of the 8 examples of "
        "'validation'\n"
    ) in outcome.out


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "error",
            r"evaluators\.mine: Broken fails on 8 of the 8 examples of 'validation' \(KeyError: 'nothing'; .*py, l",
        ),
        (
            "tensor",
            r"evaluators\.mine: Broken fails on .* \(TypeError: Object of type Tensor is not JSON serializable; ",
        ),
    ],
)
def test_preflight_names_the_evaluator_that_fails(train_tiny, own_evaluators, tmp_path, what, message):
    part = f"+evaluators.mine={{_target_: my_evaluators.Broken, what: {what}}}"
    refused = train_tiny("preflight=true", own_evaluators, part)
    assert re.match(message, refused.mistake)
    assert not (tmp_path / "runs").exists()
    assert train_tiny("preflight=true", own_evaluators, part.replace(what, "nothing")).status == 0


def test_preflight_names_what_the_report_needs(train_tiny, monkeypatch):
    def broken(model: ImageTextModel, batch: Batch) -> Tensor:
        raise AttributeError("'MyBridge' object has no attribute 'patch_attention'")

    monkeypatch.setattr(ImageTextModel, "attention_maps", broken)
    refused = train_tiny("preflight=true").mistake
    assert refused.startswith("samples: what the report shows fails on 8 of the 8 examples of 'validation' (Attribute")
