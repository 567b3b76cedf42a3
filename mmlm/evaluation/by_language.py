"""Retrieval and captions of each language by itself, of a split whose captions are in several."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.evaluation.caption_words import TOKENISATION
from mmlm.evaluation.evaluators import CaptionQuality
from mmlm.evaluation.retrieval import TIES, Protocol, figures_of, gallery_under, retrieval_values
from mmlm.evaluation.split import EncodedSplit

COUNT = "languages"
"""Name of the number of languages."""
_LANGUAGES = Figure("languages", "of those that are scored by themselves, in which the split has captions")


class ByLanguage:
    """Scores each language as if the split had no captions in any other.

    Retrieval is among the texts of the language; captions are written in it and compared with its references.
    A language that the split has no caption of has no scores.

    Args:
        languages: the languages, as captions name them.
        captions: write and score captions too; false for a model without a decoder.
        protocol: of retrieval, as in ``Retrieval``.
    """

    def __init__(self, languages: Sequence[str], captions: bool = True, protocol: Protocol = "distinct") -> None:
        if not languages or len(set(languages)) != len(languages):
            raise ArgumentError(f"languages: {list(languages)} has to name each language once, and at least one")
        self.languages, self.needs_decoder, self.protocol = tuple(languages), captions, protocol
        self.rules: Mapping[str, str] = {"protocol": protocol, "ties": TIES, "languages": ", ".join(languages)}
        if captions:
            self.rules = {**self.rules, "words": TOKENISATION, "decoding": "greedy"}
        declared = {**figures_of(protocol), **(CaptionQuality.figures if captions else {})}
        self.figures: Mapping[str, Figure] = {COUNT: _LANGUAGES} | {
            f"{language}/{key}": _of_language(figure, language)
            for language in self.languages
            for key, figure in declared.items()
        }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``languages``, and ``zh/image_to_text/R@1``, ``zh/exact`` and so on of each."""
        there = {caption.language for caption in split.captions}
        yield COUNT, float(len(there.intersection(self.languages)))
        for language in self.languages:
            rows = [row for row, caption in enumerate(split.captions) if caption.language == language]
            if not len(gallery_under(self.protocol, split, rows).pairs):
                continue
            own = list(retrieval_values(self.protocol, split, rows))
            if self.needs_decoder:
                own += CaptionQuality(language)(split)
            yield from ((f"{language}/{name}", value) for name, value in own)


def _of_language(figure: Figure, language: str) -> Figure:
    """The declaration of a figure among those of one language: a row of the table, and no chart."""
    group = FigureGroup(f"Captions in {language}: {figure.group.name}", figure.group.question)
    own = figure.under(f"{language}/")
    return replace(own, group=group, title=f"{figure.title or figure.name} ({language})", shown=("table",))
