"""Captions of which each token is chosen for itself: the most probable one, or a draw."""

from typing import TypeVar

import torch
from torch import Tensor

from mmlm.evaluation.generation.sampling import Sampling
from mmlm.evaluation.generation.task import CacheT, CaptionDecoder, Hypothesis, Task
from mmlm.model.attention import rows_of_images

FeaturesT = TypeVar("FeaturesT")


@torch.no_grad()
def write_step_by_step(
    model: CaptionDecoder[FeaturesT, CacheT],
    features: FeaturesT,
    task: Task,
    copies: int = 1,
    sampling: Sampling | None = None,
    length_power: float = 1.0,
) -> list[list[Hypothesis]]:
    """``copies`` captions of each image, in the order of their samples; without ``sampling`` the one greedy caption.

    A caption that has ended is fed its last tokens' padding until all captions of its image have; the image then leaves
    the batch, together with others, once half of it is through. ``length_power`` makes the scores.
    """
    num_first, device = len(task.first), task.keys.device
    tokens = task.beginnings(copies).new_full((len(task.keys) * copies, task.max_tokens), task.end_id)
    tokens[:, :num_first] = task.beginnings(copies)
    terms = torch.zeros(tokens.shape, dtype=torch.float64, device=device)
    ruled_totals = terms.new_zeros(len(tokens))
    lengths = torch.full((len(tokens),), task.max_tokens, device=device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    # The images that are still in the batch, and the captions of them: numbers of all images and captions.
    images = torch.arange(len(task.keys), device=device)
    rows, cache = rows_of_images(images, copies), model.start_decoding(features, task.max_tokens - 1)
    newest = tokens[:, :num_first]
    for place in range(num_first, task.max_tokens):
        own = model.decode(newest, cache)[:, -1].log_softmax(dim=-1)
        ruled = task.rules(own, tokens[rows, :place])
        chosen = ruled.argmax(dim=-1) if sampling is None else sampling.draw(ruled, task.keys[images], place, copies)
        goes_on = ~ended[rows]
        chosen = torch.where(goes_on, chosen, task.end_id)
        tokens[rows, place] = chosen
        terms[rows, place] = _of(own, chosen).masked_fill(~goes_on, 0)
        ruled_totals[rows] += _of(ruled, chosen).masked_fill(~goes_on, 0)
        ends = goes_on & (chosen == task.end_id)
        lengths[rows] = torch.where(ends, place + 1, lengths[rows])
        ended[rows] |= ends
        unfinished = ~ended[rows].view(-1, copies).all(dim=1)
        left = int(unfinished.sum())
        if left == 0:
            break
        if 2 * left <= len(images):
            stays = unfinished.nonzero()[:, 0]
            cache.keep_images(stays)
            images = images[stays]
            rows = rows_of_images(images, copies)
        newest = tokens[rows, place : place + 1]
    scores = ruled_totals / (lengths - num_first).double() ** length_power
    written = zip(tokens.tolist(), terms.tolist(), lengths.tolist(), scores.tolist(), strict=True)
    each = [
        Hypothesis(tuple(ids[num_first:length]), tuple(logs[num_first:length]), score)
        for ids, logs, length, score in written
    ]
    return [each[first : first + copies] for first in range(0, len(each), copies)]


def _of(values: Tensor, tokens: Tensor) -> Tensor:
    """float[R, V], int64[R] -> float64[R]."""
    return values.gather(1, tokens[:, None])[:, 0].double()
