"""Caption scores of a split with the interval of each, and with the level that they have by chance."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.intervals import share_interval
from mmlm.evaluation.caption_metrics import BleuCounts, Words, bleu_counts
from mmlm.evaluation.caption_scores import score_captions
from mmlm.evaluation.caption_style import style_of
from mmlm.evaluation.caption_words import caption_words
from mmlm.evaluation.image_use import shuffled_images
from mmlm.evaluation.intervals import mean_intervals, percentiles, resampled_sums

_SEED = 0
_ORDERS = 4


def with_intervals(
    candidates: Sequence[str], references: Sequence[Sequence[str]], concept: Tensor
) -> Iterator[tuple[str, float]]:
    """Yields ``captioned``, how many there are, every score with its ends and its level of chance, and the style.

    ``concept`` int64[n] is that of each image; images of one concept are not independent (``intervals``). Chance is the
    score of the same captions, each given to an image of another concept. Where one concept has more than half of the
    images that cannot be done, and is not yielded. Raises as ``score_captions``.
    """
    scores = score_captions(candidates, references)
    yield "captioned", float(len(candidates))
    yield from scores.items()
    means = torch.tensor([scores.cider_d.per_example, scores.rouge_l.per_example], dtype=torch.float64).T
    (cider_low, cider_high), (rouge_low, rouge_high) = mean_intervals(means, concept, _SEED).tolist()
    ends = {
        "exact": share_interval(scores.exact.per_example, concept.tolist()),
        "CIDEr-D": (cider_low, cider_high),
        "ROUGE-L": (rouge_low, rouge_high),
    }
    words = [caption_words(said) for said in candidates]
    true_words = [[caption_words(text) for text in texts] for texts in references]
    for order, interval in enumerate(bleu_intervals(words, true_words, concept), start=1):
        ends[f"BLEU-{order}"] = interval
    for name, (low, high) in ends.items():
        yield f"{name}/low", low
        yield f"{name}/high", high
    yield from style_of(words, true_words, concept, _SEED)
    try:
        dealt = shuffled_images(concept, _SEED).tolist()
    except UserError:
        return
    by_chance = dict(score_captions([candidates[row] for row in dealt], references).items())
    for name, value in by_chance.items():
        yield f"{name}/chance", value


def bleu_intervals(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], concept: Tensor
) -> list[tuple[float, float]]:
    """The intervals of BLEU-1 to BLEU-4, which are no means over examples: counts are drawn, and scored each time."""
    rows = []
    for said, texts in zip(candidates, references, strict=True):
        counts = bleu_counts(said, texts)
        rows.append([*counts.matched, *counts.possible, counts.length, counts.reference_length])
    drawn = resampled_sums(torch.tensor(rows, dtype=torch.float64), concept, _SEED)
    found = [BleuCounts(row[:_ORDERS], row[_ORDERS : 2 * _ORDERS], row[-2], row[-1]).scores() for row in drawn.tolist()]
    low, high = percentiles(torch.tensor(found, dtype=torch.float64)).tolist()
    return list(zip(low, high, strict=True))
