"""Which captions of training data are doubtful, by what several checkpoints of a run make of them.

A wrong caption is learned late, if at all: on the mean over checkpoints it costs more than its length explains
(dataset cartography, arXiv:2009.10795), and another caption fits its image better (area under the margin,
arXiv:2001.10528). An example that was right and is wrong again is forgotten (arXiv:1812.05159). Where those follow
every epoch, the checkpoints that are kept stand for them here; and doubt is measured against the spread of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.data.look import equal_pixels
from mmlm.evaluation.caption_fit import CaptionFit, Floats

DOUBTFUL = 3.5
"""Robust deviations above the median from which on a value is an outlier: 1 of 4,300 normal values is."""
_TAIL = 0.1
"""The share of values at either end that has no say in their spread. More wrong captions hide some of themselves."""
_NORMAL = 2.5631
"""Standard deviations of a normal distribution between its quantiles at ``_TAIL`` and 1 - ``_TAIL``."""


@dataclass(frozen=True)
class Doubts:
    """What is found; rows count captions as the ``CaptionFit`` do."""

    doubt: Floats
    """float64[n]: robust deviations by which a caption fits worse than the median one."""
    mislabelled: tuple[int, ...]
    """Rows of the captions that are likely wrong, the most doubtful first."""
    never: tuple[int, ...]
    """Rows of those that no checkpoint has right and that are not likely wrong, the most doubtful first."""
    forgotten: tuple[int, ...]
    """Rows of those that an earlier checkpoint has right and the last one has not, the most doubtful first."""
    same: tuple[tuple[str, ...], ...]
    """Ids with equal pixels, group by group."""
    mislabelled_ids: tuple[str, ...]
    """The examples all of whose captions are likely wrong, in the order of the data read."""
    repeated_ids: tuple[str, ...]
    """The examples whose pixels and captions another one before them has."""


def doubts_of(fits: Sequence[CaptionFit]) -> Doubts:
    """Ranks the captions that all of ``fits`` (in the order of their steps) have scored.

    A caption is right at a checkpoint if its margin is above 0; one without a margin is neither right nor wrong.
    """
    last = fits[-1]
    margin = np.array([fit.margin for fit in fits])
    known = ~np.isnan(margin).any(axis=0)
    late = deviations(-margin.mean(axis=0))
    loss = np.mean([fit.loss for fit in fits], axis=0)
    costly = np.zeros_like(late) if np.isnan(loss).any() else deviations(beyond_length(loss, last.tokens))
    doubt = deviations(np.where(known, late, 0.0) + costly)
    order = np.argsort(-doubt, kind="stable")
    right = margin > 0
    wrong = (doubt > DOUBTFUL) & ~(margin.mean(axis=0) > 0)
    never = ~right.any(axis=0) & known & ~wrong
    forgotten = right[:-1].any(axis=0) & ~right[-1] & known
    sure = {id for id, one in zip(last.ids, wrong, strict=True) if not one}
    ids = list(last.looks)
    same = tuple(tuple(ids[place] for place in group) for group in equal_pixels(list(last.looks.values())))
    return Doubts(
        doubt,
        tuple(int(row) for row in order if wrong[row]),
        tuple(int(row) for row in order if never[row]),
        tuple(int(row) for row in order if forgotten[row]),
        same,
        tuple(dict.fromkeys(id for id in last.ids if id not in sure)),
        tuple(_repeated(last, same)),
    )


def deviations(values: Floats) -> Floats:
    """float64[n] less their median, over their robust standard deviation; NaN stays NaN.

    The spread is that between the quantiles at 10% and 90%: the median absolute deviation is next to nothing where few
    kinds of captions, each with its own value, make up the data. All 0 if those two quantiles are equal.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    low, middle, high = np.quantile(known, (_TAIL, 0.5, 1 - _TAIL))
    spread = (high - low) / _NORMAL
    return (values - middle) / spread if spread > 0 else values * 0


def beyond_length(loss: Floats, tokens: Floats) -> Floats:
    """float64[n]: the nats of captions less those that a straight line through all gives captions of their length."""
    if len(np.unique(tokens)) < 2:
        return loss - loss.mean()
    slope, start = np.polyfit(tokens, loss, 1)
    return loss - (slope * tokens + start)


def _repeated(fit: CaptionFit, same: Sequence[Sequence[str]]) -> list[str]:
    """Of each group of equal images, the ids whose captions one before them has too."""
    texts: dict[str, set[str]] = {}
    for id, caption in zip(fit.ids, fit.captions, strict=True):
        texts.setdefault(id, set()).add(caption)
    found = []
    for group in same:
        seen: list[set[str]] = []
        for id in group:
            if texts.get(id, set()) in seen:
                found.append(id)
            seen.append(texts.get(id, set()))
    return found
