"""How many of the captions that a model writes it has read in training, word for word."""

from collections.abc import Iterator, Mapping
from typing import Self

import torch

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.intervals import share_interval
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedSplit
from mmlm.evaluation.training_captions import READS_ALIKE, TrainingCaptions
from mmlm.evaluation.written_captions import WrittenCaptions, scored_decoding, written_captions

GROUP = FigureGroup(
    "Copies of training captions",
    "Does the decoder write what it has read? Compare with the true captions: what is said of many images is in any "
    "data.",
)


class Copied:
    """The share of the captions that the model writes which read as a training caption does, and that of true ones.

    Texts that differ in capitals, punctuation and blanks only read the same. The training captions are listed once for
    all splits, without an image, in any language.

    Args:
        language: the language to caption in, and the only one whose references count; None counts all.
        decoding: how captions are written; greedy by default. Its language is that of the evaluator.

    Raises:
        ArgumentError: as ``scored_decoding``.
    """

    needs_decoder = True
    figures: Mapping[str, Figure] = {
        "written": Figure(
            "Copied captions",
            "written captions that are captions of the training data, word for word",
            GROUP,
            share=True,
            low="written/low",
            high="written/high",
            count="scored",
            among="training_captions",
            shown=("table", "chart", "compare"),
        ),
        "true": Figure(
            "True captions of training",
            "the same of the true captions: what copying nothing would be like, if it wrote as people do",
            GROUP,
            share=True,
            low="true/low",
            high="true/high",
            shown=("table",),
        ),
    }

    def __init__(self, language: str | None = None, decoding: GenerationSettings | None = None) -> None:
        self.decoding = scored_decoding(decoding, language)
        self.language = language
        self.requires = Requires(language, own_texts=True)
        self.rules: Mapping[str, str] = {
            "decoding": self.decoding.in_words,
            "language": "any" if language is None else language,
            "copies": READS_ALIKE,
        }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields both shares, with intervals over concepts; ``scored``; and ``training_captions``, the different ones.

        Raises UserError where the training data are unknown or cannot be read, and without a caption to score.
        """
        written, known = self._found(split)
        concept = written.concept.tolist()
        yield "scored", float(len(written.ids))
        yield "training_captions", float(len(known))
        yield from _share("written", known.hold(written.captions), concept)
        true = [(text, key) for texts, key in zip(written.references, concept, strict=True) for text in texts]
        yield from _share("true", known.hold([text for text, _ in true]), [key for _, key in true])

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields whether each caption is a copy."""
        written, known = self._found(split)
        values = torch.tensor(known.hold(written.captions), dtype=torch.float64)
        yield ItemValues("written", written.ids, written.concept, values, written.captions)

    def with_decoding(self, decoding: GenerationSettings) -> Self:
        """The same of captions that are written otherwise."""
        return type(self)(self.language, decoding)

    def _found(self, split: EncodedSplit) -> tuple[WrittenCaptions, TrainingCaptions]:
        if split.trained_on is None:
            raise UserError("the captions that the model was trained on are not known here")
        return written_captions(split, self.language, self.decoding), split.trained_on


def _share(name: str, values: list[bool], concept: list[int]) -> Iterator[tuple[str, float]]:
    """Yields a share with its interval."""
    low, high = share_interval(list(map(float, values)), concept)
    yield name, sum(values) / len(values)
    yield f"{name}/low", low
    yield f"{name}/high", high
