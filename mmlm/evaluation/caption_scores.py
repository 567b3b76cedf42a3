"""Raw captions against raw reference captions: exact match, BLEU-1..4, ROUGE-L, CIDEr-D, and what they are like.

Words and scores are those of COCO's caption evaluation, its tokenizer included (``caption_words`` and
``caption_metrics``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmlm.core.figure import Figure, FigureGroup, Place
from mmlm.evaluation.caption_metrics import MetricScores, bleu, check_captions, cider_d, mean_of, rouge_l
from mmlm.evaluation.caption_words import caption_words, normalised

CAPTIONING = FigureGroup("Captioning", "How close is the caption that the decoder wrote to the true ones?")


def _score(
    key: str, name: str, meaning: str, shown: tuple[Place, ...], share: bool = False, headline: str = ""
) -> Figure:
    """A score, with the interval over concepts and the level of captions that were dealt to other images."""
    return Figure(
        name,
        meaning,
        CAPTIONING,
        share=share,
        higher_is_better=True,
        chance=f"{key}/chance",
        low=f"{key}/low",
        high=f"{key}/high",
        count="captioned",
        shown=shown,
        headline=headline,
    )


_EVERYWHERE: tuple[Place, ...] = ("table", "chart", "compare", "console")
FIGURES = {
    "exact": _score(
        "exact",
        "Exact",
        "word for word a true caption",
        _EVERYWHERE,
        share=True,
        headline="{value}{of_images} are captioned in exactly the right words",
    ),
    "CIDEr-D": _score("CIDEr-D", "CIDEr-D", "shared runs of 1 to 4 words, rare ones count more; 0 to 10", _EVERYWHERE),
    "BLEU-4": _score("BLEU-4", "BLEU-4", "shared runs of 1 to 4 words, over the whole split; 0 to 1", ("table",)),
    "ROUGE-L": _score("ROUGE-L", "ROUGE-L", "longest common sequence of words; 0 to 1", ("table",)),
    "BLEU-1": _score("BLEU-1", "BLEU-1", "shared words", ()),
    "BLEU-2": _score("BLEU-2", "BLEU-2", "shared runs of 1 and 2 words", ()),
    "BLEU-3": _score("BLEU-3", "BLEU-3", "shared runs of 1 to 3 words", ()),
}
"""What the names of ``CaptionScores.items`` are."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one candidate caption for each example. All are shares in [0, 1], except CIDEr-D in [0, 10]."""

    exact: MetricScores
    """1 where the candidate is one of the references, letter case and spacing aside; corpus: the share of those."""
    bleu: tuple[MetricScores, ...]
    """BLEU-1 to BLEU-4."""
    rouge_l: MetricScores
    cider_d: MetricScores

    def items(self) -> Iterator[tuple[str, float]]:
        """Yields ``(name, corpus score)``: exact, BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D."""
        yield "exact", self.exact.corpus
        for order, scores in enumerate(self.bleu, start=1):
            yield f"BLEU-{order}", scores.corpus
        yield "ROUGE-L", self.rouge_l.corpus
        yield "CIDEr-D", self.cider_d.corpus


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores raw text: ``candidates[i]`` against all of ``references[i]``.

    Raises ValueError if the two differ in length or are empty, TypeError if an example's references are one string,
    and UserError if an example has no reference.
    """
    check_captions(candidates, references)
    candidate_words = [caption_words(candidate) for candidate in candidates]
    reference_words = [[caption_words(text) for text in texts] for texts in references]
    return CaptionScores(
        exact=exact_match(candidates, references),
        bleu=bleu(candidate_words, reference_words),
        rouge_l=rouge_l(candidate_words, reference_words),
        cider_d=cider_d(candidate_words, reference_words),
    )


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> MetricScores:
    """1 for a raw caption that ``is_exact``, else 0. Punctuation counts. Raises as ``score_captions``."""
    check_captions(candidates, references)
    return mean_of([float(is_exact(said, texts)) for said, texts in zip(candidates, references, strict=True)])


def is_exact(candidate: str, references: Sequence[str]) -> bool:
    """Whether a caption equals one of its references after NFKC, lower-casing and joining runs of spaces."""

    def same(text: str) -> str:
        return " ".join(normalised(text).split())

    return same(candidate) in {same(reference) for reference in references}
