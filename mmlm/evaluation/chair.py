"""CHAIR: objects that a written caption names and the image does not show."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.intervals import share_interval
from mmlm.data.coco_objects import read_objects
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.image_use import shuffled_images
from mmlm.evaluation.intervals import percentiles, resampled_sums
from mmlm.evaluation.object_words import read_object_words
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedSplit
from mmlm.evaluation.written_captions import scored_decoding, written_captions

_SEED = 0

GROUP = FigureGroup(
    "Hallucinated objects",
    "Does the decoder name objects that the image does not show? A caption that names none is never wrong: read the "
    "two together with the recall.",
)


def _figure(name: str, meaning: str, higher: bool, shown: str = "") -> Figure:
    return Figure(
        shown or name,
        meaning,
        GROUP,
        share=True,
        higher_is_better=higher,
        chance=f"{name}/chance",
        low=f"{name}/low",
        high=f"{name}/high",
        count="scored",
        shown=("table", "chart", "compare"),
    )


class Chair:
    """CHAIR (Rohrbach et al., arXiv:1809.02156) of the captions that the model writes, and the recall of objects.

    CHAIRs is the share of captions that name an object which the image does not show; CHAIRi is the share of such
    mentions among all mentions of objects; recall is the share of the objects shown that the caption names. An image
    shows what the instances file has of it, and, with ``true_captions``, what its true captions name (so the paper).
    An object counts once in what is shown, and as often as it is mentioned. Sums over the split, not means of means.

    Images are known by ``file_name``. Those that the file does not list are left out. Ours, where the paper has a
    stemmer and rules for single animals: a phrase or its plural, the longest first (``object_words``).

    Args:
        instances: the file of COCO's instances, or one of its form.
        synonyms: a text file, one line an object: its category's name and other words for it, separated by commas.
        true_captions: whether what the true captions name is shown.
        language: the language to caption in, and the only one whose references count; None counts all.
        decoding: how captions are written; greedy by default. Its language is that of the evaluator.

    Raises:
        ArgumentError: no file given, or as ``scored_decoding``.
        UserError: as ``read_objects`` and ``read_object_words``.
    """

    needs_decoder = True
    figures: Mapping[str, Figure] = {
        "CHAIRs": _figure("CHAIRs", "captions that name an object which is not there", False),
        "CHAIRi": _figure("CHAIRi", "mentions of objects that are not there, of all mentions", False),
        "recall": _figure("recall", "objects that are there and are named", True, "Recall of objects"),
    }

    def __init__(
        self,
        instances: str | None,
        synonyms: str | None,
        true_captions: bool = True,
        language: str | None = None,
        decoding: GenerationSettings | None = None,
    ) -> None:
        if instances is None or synonyms is None:
            name, what = ("instances", "of COCO's instances") if instances is None else ("synonyms", "of synonyms")
            raise ArgumentError(f"{name}: null must be the file {what}; give evaluators.chair.{name}=FILE")
        self.decoding = scored_decoding(decoding, language)
        self.instances, self.true_captions, self.language = instances, true_captions, language
        self._objects = read_objects(Path(instances))
        self._words = read_object_words(Path(synonyms), self._objects.categories)
        self.requires = Requires(language, own_texts=True)
        self.rules: Mapping[str, str] = {
            "decoding": self.decoding.in_words,
            "language": "any" if language is None else language,
            "synonyms": self._words.digest,
            "shown": "instances and true captions" if true_captions else "instances",
        }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields the three, with intervals over concepts and chance, and ``scored``, how many captions count.

        A share of nothing is left out. Chance is that of the same captions, each given to an image of another concept;
        where one concept has more than half of the images that cannot be done. Raises UserError where no image that
        has a true caption is listed.
        """
        found = self._found(split)
        yield "scored", float(len(found.ids))
        wrong = found.wrong().tolist()
        low, high = share_interval(wrong, found.concept.tolist())
        yield "CHAIRs", sum(wrong) / len(wrong)
        yield "CHAIRs/low", low
        yield "CHAIRs/high", high
        for name, counts in found.counts().items():
            part, whole = counts.sum(dim=0).tolist()
            if whole:
                drawn = resampled_sums(counts, found.concept, _SEED)
                low, high = percentiles((drawn[:, 0] / drawn[:, 1])[drawn[:, 1] > 0]).tolist()
                yield name, part / whole
                yield f"{name}/low", low
                yield f"{name}/high", high
        try:
            dealt = found.dealt(shuffled_images(found.concept, _SEED).tolist())
        except UserError:
            return
        yield "CHAIRs/chance", dealt.wrong().mean().item()
        for name, counts in dealt.counts().items():
            part, whole = counts.sum(dim=0).tolist()
            if whole:
                yield f"{name}/chance", part / whole

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields whether each caption names an object that is not there: the others are no means over captions."""
        found = self._found(split)
        yield ItemValues("CHAIRs", found.ids, found.concept, found.wrong(), found.captions)

    def with_decoding(self, decoding: GenerationSettings) -> Self:
        """The same of captions that are written otherwise."""
        # Not built again: the file of instances may be large.
        made = copy.copy(self)
        made.decoding = scored_decoding(decoding, self.language)
        made.rules = {**self.rules, "decoding": made.decoding.in_words}
        return made

    def _found(self, split: EncodedSplit) -> "_Found":
        written = written_captions(split, self.language, self.decoding)
        known = [(place, self._objects.find(id)) for place, id in enumerate(written.ids)]
        listed = [(place, objects) for place, objects in known if objects is not None]
        if not listed:
            raise UserError(
                f"no image of the split '{split.name}' is listed in {self.instances} (the first is "
                f"'{written.ids[0]}'); images are known by 'file_name'"
            )
        places = [place for place, _ in listed]
        there = [set(objects) for _, objects in listed]
        if self.true_captions:
            for objects, place in zip(there, places, strict=True):
                objects.update(name for text in written.references[place] for name in self._words.mentions(text))
        captions = [written.captions[place] for place in places]
        return _Found(
            [written.ids[place] for place in places],
            written.concept[places],
            captions,
            [self._words.mentions(text) for text in captions],
            there,
        )


@dataclass(frozen=True)
class _Found:
    """The n captions that count."""

    ids: list[str]
    concept: Tensor
    """int64[n]."""
    captions: list[str]
    named: Sequence[list[str]]
    """The objects that each names, as often as it does."""
    there: Sequence[set[str]]
    """The objects that each image shows."""

    def dealt(self, order: Sequence[int]) -> "_Found":
        """The same images, each with the caption of image ``order[i]``."""
        captions, named = [self.captions[row] for row in order], [self.named[row] for row in order]
        return _Found(self.ids, self.concept, captions, named, self.there)

    def wrong(self) -> Tensor:
        """float64[n]: 1 for a caption that names something that is not there."""
        each = [float(not there.issuperset(named)) for named, there in zip(self.named, self.there, strict=True)]
        return torch.tensor(each, dtype=torch.float64)

    def counts(self) -> dict[str, Tensor]:
        """float64[n, 2] of CHAIRi and of recall: the number of a part, and of the whole that it is a part of."""
        pairs = list(zip(self.named, self.there, strict=True))
        mentions = [[sum(name not in there for name in named), len(named)] for named, there in pairs]
        recalled = [[len(there.intersection(named)), len(there)] for named, there in pairs]
        return {
            "CHAIRi": torch.tensor(mentions, dtype=torch.float64),
            "recall": torch.tensor(recalled, dtype=torch.float64),
        }
