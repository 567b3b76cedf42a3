"""What written captions are like, right or wrong: their length, their variety, and whether they repeat themselves."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.intervals import share_interval
from mmlm.evaluation.caption_metrics import Words, bleu_counts
from mmlm.evaluation.intervals import percentiles, resampled_sums

GROUP = FigureGroup("Style of the captions", "How long and how varied are the captions that the decoder wrote?")
FIGURES = {
    "length_ratio": Figure(
        "Length ratio",
        "words of the captions over those of the true ones that are nearest in length; 1 is as long",
        GROUP,
        low="length_ratio/low",
        high="length_ratio/high",
        shown=("table",),
    ),
    "distinct-1": Figure("Distinct words", "different words over all words that were written", GROUP, shown=("table",)),
    "distinct-2": Figure("Distinct pairs", "different pairs of words over all pairs", GROUP, shown=("table",)),
    "repetition": Figure(
        "Repetition",
        "captions that say two words running more than once",
        GROUP,
        share=True,
        higher_is_better=False,
        low="repetition/low",
        high="repetition/high",
        shown=("table",),
    ),
}
"""What the names of ``style_of`` are."""


def style_of(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], concept: Tensor, seed: int = 0
) -> Iterator[tuple[str, float]]:
    """Yields the values of captions that are split into words, with the intervals of those that are means.

    ``concept`` int64[n] is that of each image. ``distinct-n`` is that of Li et al. (arXiv:1510.03055), over the whole
    split: it falls with the number of captions, and is 0 without any n-gram.
    """
    counts = [bleu_counts(said, texts) for said, texts in zip(candidates, references, strict=True)]
    lengths = torch.tensor([[one.length, one.reference_length] for one in counts], dtype=torch.float64)
    if lengths[:, 1].sum() > 0:
        drawn = resampled_sums(lengths, concept, seed)
        low, high = percentiles(drawn[:, 0] / drawn[:, 1].clamp(min=1)).tolist()
        yield "length_ratio", (lengths[:, 0].sum() / lengths[:, 1].sum()).item()
        yield "length_ratio/low", low
        yield "length_ratio/high", high
    for order in (1, 2):
        ngrams = [gram for words in candidates for gram in _ngrams(words, order)]
        yield f"distinct-{order}", len(set(ngrams)) / max(1, len(ngrams))
    repeats = [float(len(set(pairs)) < len(pairs)) for pairs in (_ngrams(words, 2) for words in candidates)]
    low, high = share_interval(repeats, concept.tolist())
    yield "repetition", sum(repeats) / len(repeats)
    yield "repetition/low", low
    yield "repetition/high", high


def _ngrams(words: Words, order: int) -> list[tuple[str, ...]]:
    """All runs of ``order`` words."""
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
