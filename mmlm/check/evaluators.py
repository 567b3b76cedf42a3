"""The rules of an evaluator, tried on a hand-made split that the tiny model of random weights has encoded."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import nn

from mmlm.check.modules import stir
from mmlm.check.ranks import Ranks, RanksFailed
from mmlm.check.report import Broken, Check, expect
from mmlm.core.batch import Caption, Example
from mmlm.core.figure import declared
from mmlm.core.wording import first_line
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.sources import texts_of
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from mmlm.evaluation.evaluators import Evaluator
from mmlm.evaluation.requires import Requires, SplitTexts, required_by
from mmlm.evaluation.split import EncodedSplit, encode_split
from mmlm.evaluation.training_captions import TrainingCaptions
from mmlm.experiment.build import build_evaluators, build_model
from mmlm.experiment.config import Config

EXAMPLES = 13
TEXT_ONLY_AT = (4, 5, 11)
"""Examples without an image; the batch of 4 and 5 has none at all."""
BATCH_SIZES = (2, 5, EXAMPLES)
"""The first is that of the values that all others are compared with."""
MOST_TOKENS = 24
CLOSE = 1e-6
"""Relative and absolute difference of values that count as equal, computed in float64 and kept in float32."""


class _Examples(list[Example]):
    """Examples as a source."""

    def captions(self) -> Iterator[Caption]:
        """Every caption."""
        for example in self:
            yield from example.captions


def examples() -> _Examples:
    """Images with one to three captions, some of them equal, concepts of several images, and text without images."""
    generator = torch.Generator().manual_seed(0)
    made = _Examples()
    for number in range(EXAMPLES):
        image = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
        texts = [Caption(f"picture {'and more ' * (number % 4)}{n}") for n in (number, number % 3, number % 5)]
        captions = tuple(texts[: 1 + number % 3])
        if number in TEXT_ONLY_AT:
            made.append(Example(f"text{number}", None, captions, "concept0"))
        else:
            made.append(Example(f"image{number}", image, captions, None if number % 2 else f"concept{number // 4}"))
    return made


def encoded(config: Config, batch_size: int, source: _Examples | None = None) -> EncodedSplit:
    """The split of ``source`` (null: of ``examples``), in float64; each rank has its share of the batches."""
    source = examples() if source is None else source
    tokenizer = BytePair(300)
    tokenizer.fit(source.captions())
    torch.manual_seed(0)
    config = replace(config, data=replace(config.data, max_tokens=MOST_TOKENS))
    model = build_model(config, tokenizer.vocab_size, load_weights=False)
    stir(cast(nn.Module, model).double().eval())
    transform = Transform(config.data.image_size, None)
    batches = EvaluationBatches(source, tokenizer, transform, batch_size, MOST_TOKENS)
    split = encode_split("tiny", model, tokenizer, batches, torch.device("cpu"), MOST_TOKENS)
    return replace(split, trained_on=TrainingCaptions(examples().captions))


def build(config: Config, name: str) -> Evaluator:
    """The evaluator of that name. The split is in no language, and so is the evaluator."""
    plain = replace(config.data, language=None)
    return build_evaluators(replace(config, data=plain, evaluators={name: config.evaluators[name]}))[name]


def rank_values(config: Config, name: str, batch_size: int) -> dict[str, float]:
    """What a rank does: its share of the batches, and the values of the evaluator."""
    return dict(build(config, name)(encoded(config, batch_size)))


@dataclass(frozen=True)
class EvaluatorUnderTest:
    """An evaluator of a config."""

    config: Config
    name: str
    ranks: Ranks

    @cached_property
    def yielded(self) -> list[tuple[str, float]]:
        """What it yields in one process."""
        return list(build(self.config, self.name)(encoded(self.config, BATCH_SIZES[0])))


def values(subject: EvaluatorUnderTest) -> None:
    """See ``CHECKS``."""
    evaluator = build(subject.config, subject.name)
    needs_decoder = getattr(evaluator, "needs_decoder", None)
    told = f"needs_decoder is {needs_decoder!r}"
    expect(
        isinstance(needs_decoder, bool), told, "set needs_decoder = True if it writes or scores captions, else False"
    )
    expect(bool(subject.yielded), "it yields nothing", "yield (name, value)")
    for name, value in subject.yielded:
        expect(isinstance(name, str) and bool(name), f"a name is {name!r}", "yield (name, value), the name a string")
        fix = "yield a float (float(tensor)), and leave out a value that the split has nothing for"
        right = isinstance(value, float | int) and math.isfinite(value)
        expect(right, f"'{name}' is {value!r}", fix)
        share = declared(evaluator.figures, name).share
        fix = "divide a number of items by the number of all of them, or declare it without share"
        expect(not share or value <= 1, f"'{name}' is declared as a share and is {value!r}", fix)
    names = [name for name, _ in subject.yielded]
    twice = next((name for name in names if names.count(name) > 1), None)
    expect(twice is None, f"'{twice}' is yielded twice", "give every value a name of its own")


def repeatable(subject: EvaluatorUnderTest) -> None:
    """See ``CHECKS``."""
    split = encoded(subject.config, BATCH_SIZES[0])
    torch.manual_seed(1)
    again = dict(build(subject.config, subject.name)(split))
    _expect_equal(subject, again, "the second time", "draw with a generator of a fixed seed (an argument of yours)", 0)


def batch_sizes(subject: EvaluatorUnderTest) -> None:
    """See ``CHECKS``."""
    fix = "collect sums and counts over all batches and divide once: a mean of the batches' means weighs the last more"
    for size in BATCH_SIZES[1:]:
        found = rank_values(subject.config, subject.name, size)
        _expect_equal(subject, found, f"in batches of {size}", fix, CLOSE)


def ranks(subject: EvaluatorUnderTest) -> None:
    """See ``CHECKS``."""
    for size in (2, 3):
        try:
            found = subject.ranks.run(size, rank_values, subject.config, subject.name, BATCH_SIZES[0])
        except RanksFailed as error:
            fix = "go through split.over_batches for what needs pixels or memory: a rank has those of its batches only"
            if error.of_communication:
                fix = "call split.over_batches and the like on every rank alike"
            raise Broken(str(error), fix) from error
        for number, one in enumerate(found):
            fix = "compute from what every rank has, or through split.over_batches"
            _expect_equal(subject, one, f"on rank {number} of {size}", fix, 0)


def odd_splits() -> dict[str, _Examples]:
    """Splits that data of the wild has, by what is odd about them."""
    usual = examples()
    images = [example for example in usual if example.image is not None]
    silent = replace(images[0], captions=())
    return {
        "an image without captions": _Examples([silent, *usual[1:]]),
        "no text alone": _Examples(images),
        "one image": _Examples(images[1:2]),
        "two images": _Examples([replace(image, concept=None) for image in images[:2]]),
        "one concept": _Examples([replace(image, concept="concept0") for image in images]),
        "a concept in most images": _Examples(
            [replace(image, concept="concept0" if row > 1 else None) for row, image in enumerate(images)]
        ),
        "one image with a caption": _Examples([images[1], *(replace(image, captions=()) for image in images[2:5])]),
    }


def requirements(subject: EvaluatorUnderTest) -> None:
    """See ``CHECKS``."""
    evaluator = build(subject.config, subject.name)
    requires = required_by(evaluator)
    if requires is None:
        return
    right = isinstance(requires, Requires)
    expect(right, f"requires is a {type(requires).__name__}", "make it a Requires (mmlm/evaluation/requires.py)")
    for what, source in odd_splits().items():
        texts = SplitTexts("tiny", tuple(texts_of(source)))
        if texts.lacking(requires) is not None:
            continue
        fix = "leave out what has no score, or say in requires that a split may not be so"
        try:
            found = dict(evaluator(encoded(subject.config, BATCH_SIZES[0], source)))
        except Exception as error:
            raise Broken(
                f"it fails on a split with {what} ({type(error).__name__}: {first_line(error)})", fix
            ) from error
        odd = next((name for name, value in found.items() if not math.isfinite(value)), None)
        expect(odd is None, f"'{odd}' is {found.get(odd or '')} for a split with {what}", fix)


def _expect_equal(subject: EvaluatorUnderTest, found: Mapping[str, float], what: str, fix: str, most: float) -> None:
    wanted = dict(subject.yielded)
    names = found.keys() ^ wanted.keys()
    expect(not names, f"'{min(names, default='')}' is yielded only sometimes ({what})", fix)
    for name, value in wanted.items():
        close = math.isclose(found[name], value, rel_tol=most, abs_tol=most)
        expect(close, f"'{name}' is {found[name]:.6g} {what} and {value:.6g} in batches of {BATCH_SIZES[0]}", fix)


CHECKS: tuple[Check[EvaluatorUnderTest], ...] = (
    Check("it yields finite numbers, each under a name of its own, and shares of at most 1", values),
    Check("a second time it yields the same", repeatable),
    Check("the size of the batches changes no value", batch_sizes),
    Check("a split of which it requires no more than there is has finite scores", requirements),
    Check("2 and 3 ranks yield what one process yields, on every rank", ranks),
)
"""The rules of an evaluator."""
