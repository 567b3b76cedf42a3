"""What evaluators need of a split, asked of its texts before the first step: no pixels are read, nothing is encoded.

An image or a text that an evaluator cannot use is left out of its scores and counted in one line. An evaluator for
which a split has too little is left out of that split, and says why in one line. A split that no evaluator can score
is refused, as are captions in a language that the tokenizer does not know, or that training never sees.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.core.errors import UserError
from mmlm.core.wording import listed, shown
from mmlm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Requires:
    """What an evaluator needs of a split. An image counts if it has a caption; by default one such image is enough."""

    language: str | None = None
    """The only language whose captions count; None counts those of all."""
    by_concept: bool = False
    """True if the captions of an image's concept count as its own."""
    text_alone: bool = False
    """True if captions that belong to no image are scored too."""
    answers: bool = False
    """True if captions that answer a source are scored too: they say nothing of an image by themselves."""
    own_texts: bool = False
    """True if the evaluator embeds or writes texts of its own, in the language of the config."""
    concepts: int = 1
    """The fewest concepts of images that count. An image without a concept in the data is one of its own."""
    largest_share: float = 1.0
    """The largest share of the split's images that may show one concept."""
    classes: bool = False
    """True if images are given to concepts by their texts: one without an image or a text is told by its name."""


@runtime_checkable
class Requiring(Protocol):
    """An evaluator that says what it needs of a split. One that does not is asked to score every split."""

    requires: Requires


def required_by(evaluator: object) -> Requires | None:
    """What the evaluator needs of a split; None if it does not say."""
    return evaluator.requires if isinstance(evaluator, Requiring) else None


@dataclass(frozen=True)
class SplitTexts:
    """A split without its pixels."""

    key: str
    """The split's key in the config, which heads messages: ``data.validation.NAME``."""
    examples: tuple[ExampleTexts, ...]

    @cached_property
    def images(self) -> tuple[ExampleTexts, ...]:
        """The examples that have an image."""
        return tuple(example for example in self.examples if example.has_image)

    @cached_property
    def texts_alone(self) -> tuple[ExampleTexts, ...]:
        """The examples that have none."""
        return tuple(example for example in self.examples if not example.has_image)

    @cached_property
    def captions(self) -> tuple[Caption, ...]:
        """Those of all examples."""
        return tuple(caption for example in self.examples for caption in example.captions)

    def captioned(self, requires: Requires) -> tuple[ExampleTexts, ...]:
        """The images that count."""
        texted = [example for example in self.examples if _has_caption(example, requires)]
        if not requires.by_concept:
            return tuple(example for example in texted if example.has_image)
        concepts = set(map(_concept, texted))
        return tuple(image for image in self.images if _concept(image) in concepts)

    def left_out(self, requires: Requires) -> tuple[ExampleTexts, ...]:
        """The images that do not count."""
        kept = {id(image) for image in self.captioned(requires)}
        return tuple(image for image in self.images if id(image) not in kept)

    def lacking(self, requires: Requires) -> str | None:
        """What the split lacks, in words that follow on its name; None if it has all that is required."""
        if not self.images:
            return "holds no image, only texts; evaluate on images with captions"
        counted = self.captioned(requires)
        if not counted:
            return self._without_captions(requires.language)
        concepts = Counter(map(_concept, counted))
        if len(concepts) < requires.concepts:
            what = f"{len(counted)} image{'s' * (len(counted) > 1)} with a caption"
            return (
                f"has {what}, of {_numbered(len(concepts), 'concept')} (first: '{counted[0].id}'), and "
                f"{requires.concepts} concepts are needed; add images of others"
            )
        key, most = Counter(map(_concept, self.images)).most_common(1)[0]
        if most > requires.largest_share * len(self.images):
            first = next(image for image in self.images if _concept(image) == key)
            return (
                f"shows the concept {shown(first.concept)} in {most} of {len(self.images)} images (first: "
                f"'{first.id}'), and no concept may have more than {requires.largest_share:.0%} of them; evaluate on "
                "more concepts"
            )
        return None

    def _without_captions(self, language: str | None) -> str:
        first = self.images[0].id
        if language is None or not self.captions:
            return (
                f"has no caption to score: none of its {_numbered(len(self.images), 'image')} has one (first: "
                f"'{first}'); add captions, or leave the split out"
            )
        return (
            f"has no image with a caption in the language '{language}' (first: '{first}'; captions are in "
            f"{languages_of(self.captions)}); set data.language to theirs, or write their language to each"
        )


def _concept(example: ExampleTexts) -> str:
    """The zero byte keeps an id apart from a concept of the same name."""
    return f"\0{example.id}" if example.concept is None else example.concept


def _has_caption(example: ExampleTexts, requires: Requires) -> bool:
    counted = [caption for caption in example.captions if requires.answers or caption.source is None]
    return any(requires.language in (None, caption.language) for caption in counted)


def _numbered(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def languages_of(captions: Iterable[Caption]) -> str:
    """The languages of captions for a message: ``de, en``; ``no language`` stands for captions that have none."""
    found = Counter(caption.language for caption in captions)
    return listed(sorted("no language" if one is None else f"'{one}'" for one in found), 5)


@dataclass(frozen=True)
class SplitFindings:
    """What the splits of a run lack for its evaluators."""

    without: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By split and evaluator: why the evaluator is left out of the split."""
    lines: tuple[str, ...] = ()
    """What the user is told."""
    refused: str | None = None
    """Why the splits cannot be evaluated: what the first that no evaluator can score lacks. See ``accepted``."""

    def accepted(self) -> "SplitFindings":
        """These findings. Raises UserError for a split that none of the evaluators, if there are any, can score."""
        if self.refused is not None:
            raise UserError(self.refused)
        return self


def find_lacking(splits: Mapping[str, SplitTexts], evaluators: Mapping[str, object]) -> SplitFindings:
    """Asks all evaluators about the texts of all splits, by their names."""
    refused: str | None = None
    without: dict[str, dict[str, str]] = {}
    lines: list[str] = []
    asked = {name: required_by(evaluator) for name, evaluator in evaluators.items()}
    for split, texts in splits.items():
        told = {name: texts.lacking(requires) for name, requires in asked.items() if requires is not None}
        reasons = {name: reason for name, reason in told.items() if reason is not None}
        if reasons and len(reasons) == len(evaluators):
            refused = refused or f"{texts.key}: it {next(iter(reasons.values()))}"
        without[split] = reasons
        lines += [f"{split}: without evaluators.{name}: it {reason}" for name, reason in reasons.items()]
        for name, requires in asked.items():
            if requires is not None and requires.classes and name not in reasons:
                lines += _no_classes(split, texts, requires, name)
        lines += _left_out(split, texts, {n: r for n, r in asked.items() if r is not None and n not in reasons})
    return SplitFindings(without, tuple(lines), refused)


def _left_out(split: str, texts: SplitTexts, asked: Mapping[str, Requires]) -> Iterator[str]:
    """A line for the images that some evaluators leave out, and one for the texts without an image."""
    users: dict[tuple[str, str], list[str]] = {}
    for name, requires in asked.items():
        images = texts.left_out(requires)
        if images:
            which = f" in '{requires.language}'" if any(image.captions for image in images) else ""
            verb = "have" if len(images) > 1 else "has"
            what = f"{len(images)} of {_numbered(len(texts.images), 'image')} {verb} no caption{which}"
            users.setdefault((what, images[0].id), []).append(name)
    alone = texts.texts_alone
    if alone:
        verb = "are" if len(alone) > 1 else "is"
        what = f"{len(alone)} of {_numbered(len(texts.examples), 'example')} {verb} text alone"
        users[what, alone[0].id] = [name for name, requires in asked.items() if not requires.text_alone]
    for (what, first), names in users.items():
        if names:
            yield f"{split}: {what} (first: '{first}'); not scored by {listed(names, 5)}"


def _no_classes(split: str, texts: SplitTexts, requires: Requires, name: str) -> Iterator[str]:
    """A line for the concepts that are no class of the evaluator ``name``, if there are any."""
    pictured = dict.fromkeys(image.concept for image in texts.images if image.concept is not None)
    named = dict.fromkeys(
        one.concept for one in texts.examples if one.concept is not None and _has_caption(one, requires)
    )
    found = {
        f"no text{f' in {requires.language!r}' if requires.language else ''}": [c for c in pictured if c not in named],
        "no image": [concept for concept in named if concept not in pictured],
    }
    said = [
        f"{_numbered(len(concepts), 'concept')} with {what} ({listed(list(map(shown, concepts)), 5)})"
        for what, concepts in found.items()
        if concepts
    ]
    if said:
        yield f"{split}: {' and '.join(said)}: no class of evaluators.{name}"


def check_languages(texts: SplitTexts, tokenizer: Tokenizer) -> None:
    """UserError that names split and example if the tokenizer does not know the language of a caption."""
    known: set[str | None] = set()
    for example in texts.examples:
        for caption in example.captions:
            if caption.language in known:
                continue
            try:
                tokenizer.start_id(caption.language)
            except UserError as error:
                raise UserError(f"{texts.key}: '{example.id}': {error}") from None
            known.add(caption.language)


def check_start(language: str | None, captions: Iterable[Caption], tokenizer: Tokenizer) -> None:
    """UserError if captions in ``language`` start with a token that training on ``captions`` never sees."""
    found = Counter(caption.language for caption in captions)
    start = tokenizer.start_id(language)
    if not found or any(tokenizer.start_id(one) == start for one in found):
        return
    theirs = languages_of(Caption("", one) for one in found)
    fix = "null" if None in found else str(found.most_common(1)[0][0])
    raise UserError(
        f"data.language: {shown(language)}, and all {found.total():,} captions of data.train are in {theirs}: what is "
        f"written would start with a token that training never sees; set data.language={fix}, or give captions this "
        "language"
    )
