"""The most probable captions of each image, by a beam over the prefixes.

Nothing is asked of a decoder's cache: every step reads the whole prefixes again, with a cache of its own. That costs
as many tokens as a caption has squared, which is little for the lengths of captions.
"""

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from mmlm.evaluation.decoding import CaptionDecoder


class Rows(Protocol):
    """The features of several images."""

    def __getitem__(self, rows: Tensor) -> Self:
        """Those of the images ``rows`` int64[N], which may name an image several times."""
        ...


FeaturesT = TypeVar("FeaturesT", bound=Rows)
CacheT = TypeVar("CacheT")


@dataclass(frozen=True)
class Hypothesis:
    """A caption that a beam has found."""

    tokens: tuple[int, ...]
    """After the start; the end token included where it was reached."""
    log_probabilities: tuple[float, ...]
    """Of each token after those before it, natural logarithm."""

    @property
    def log_probability(self) -> float:
        """Of the whole caption."""
        return sum(self.log_probabilities)


@torch.no_grad()
def n_best(
    model: CaptionDecoder[FeaturesT, CacheT],
    features: FeaturesT,
    start_ids: Tensor,
    end_id: int,
    max_tokens: int,
    count: int,
) -> list[list[Hypothesis]]:
    """Up to ``count`` captions of each image, the most probable first, by a beam as wide as that.

    ``start_ids`` int64[B] and ``max_tokens`` are as for ``greedy``; a caption that reaches that length is cut there and
    counts with the probability of its tokens. Lengths are not weighed. An image's search ends once none of its
    unfinished captions is more probable than the last of its ``count``: none can become so. The result for an image
    does not depend on the others. The caller puts the model in evaluation mode.
    """
    device, images = start_ids.device, len(start_ids)
    # The hypotheses of an image stand together. In the beginning there is one, beside impossible ones.
    rows = torch.arange(images, device=device).repeat_interleave(count)
    prefixes = start_ids[rows][:, None]
    terms = torch.zeros(images * count, 0, dtype=torch.float64, device=device)
    totals = torch.full((images, count), -torch.inf, dtype=torch.float64, device=device)
    totals[:, 0] = 0
    found: list[list[Hypothesis]] = [[] for _ in range(images)]
    for length in range(2, max_tokens + 1):
        logits = model.decode(prefixes, model.start_decoding(features[rows]))[:, -1].double()
        next_terms = logits.log_softmax(dim=-1)
        reached = (totals.flatten()[:, None] + next_terms).unflatten(0, (images, count))
        vocabulary = reached.shape[-1]
        # A hypothesis ends in one way only, so of twice as many at least ``count`` go on.
        best, places = reached.flatten(1).topk(min(2 * count, count * vocabulary), dim=1)
        parents = rows[::count, None] * count + places // vocabulary
        tokens = places % vocabulary
        steps = next_terms[parents, tokens]
        over = (tokens == end_id) | (length == max_tokens)
        ended = over & best.isfinite()
        for image, place in ended.nonzero().tolist():
            parent = parents[image, place]
            made = Hypothesis(
                (*prefixes[parent, 1:].tolist(), int(tokens[image, place])),
                (*terms[parent].tolist(), float(steps[image, place])),
            )
            found[image] = sorted([*found[image], made], key=lambda one: -one.log_probability)[:count]
        # Those that go on come first, the most probable in front.
        best = best.masked_fill(over, -torch.inf)
        best, order = best.sort(dim=1, descending=True, stable=True)
        totals, order = _padded(best, count, -torch.inf), _padded(order, count, 0)
        parents, tokens, steps = (value.gather(1, order).flatten() for value in (parents, tokens, steps))
        prefixes = torch.cat([prefixes[parents], tokens[:, None]], dim=1)
        terms = torch.cat([terms[parents], steps[:, None]], dim=1)
        if all(_is_settled(done, best, count) for done, best in zip(found, totals[:, 0].tolist(), strict=True)):
            break
    return found


def _is_settled(found: list[Hypothesis], best: float, count: int) -> bool:
    """Whether an unfinished caption of log-probability ``best`` can change nothing any more."""
    return best == -torch.inf or (len(found) == count and best <= found[-1].log_probability)


def _padded(values: Tensor, count: int, filler: float) -> Tensor:
    """[B, n] -> [B, count]: cut, or with fillers behind."""
    missing = count - values.shape[1]
    return values[:, :count] if missing <= 0 else torch.nn.functional.pad(values, (0, missing), value=filler)
