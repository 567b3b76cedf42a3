"""Beam search: the captions of the highest score, found by following the most probable beginnings side by side."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmlm.evaluation.generation.task import CacheT, CaptionDecoder, Hypothesis, Task

FeaturesT = TypeVar("FeaturesT")


@dataclass
class Found:
    """The best captions that have been found of each image, the best first."""

    scores: Tensor
    """float64[B, n]; minus infinity where there is none yet."""
    tokens: Tensor
    """int64[B, n, T], without the first ones of the task."""
    terms: Tensor
    """float64[B, n, T]: the model's log-probability of each token."""
    lengths: Tensor
    """int64[B, n]."""

    def add(self, images: Tensor, new: "Found") -> None:
        """Puts captions of ``images`` int64[k] among those found, and drops the worst."""
        count = self.scores.shape[1]
        joined = torch.cat([self.scores[images], new.scores], dim=1)
        scores, order = joined.sort(dim=1, descending=True, stable=True)
        order = order[:, :count]
        self.scores[images] = scores[:, :count]
        self.lengths[images] = torch.cat([self.lengths[images], new.lengths], dim=1).gather(1, order)
        self.tokens[images] = _rows(torch.cat([self.tokens[images], new.tokens], dim=1), order)
        self.terms[images] = _rows(torch.cat([self.terms[images], new.terms], dim=1), order)

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Those of each image."""
        columns = (self.scores, self.lengths, self.tokens, self.terms)
        return [
            [
                Hypothesis(tuple(tokens[:length]), tuple(terms[:length]), score)
                for score, length, tokens, terms in zip(*image, strict=True)
                if score > -torch.inf
            ]
            for image in zip(*(column.tolist() for column in columns), strict=True)
        ]


@dataclass
class Live:
    """The beginnings that are followed: K of each of B images. Their order means nothing."""

    totals: Tensor
    """float64[B, K]: log-probability under the rules; minus infinity where there is no beginning."""
    tokens: Tensor
    """int64[B, K, T], with the first ones of the task."""
    terms: Tensor
    """float64[B, K, T]: the model's log-probability of each token."""

    def continued(self, parents: Tensor, chosen: Tensor, own: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Tokens and terms [B, m, T] of the beginnings ``parents`` int64[B, m] with a token ``chosen`` int64[B, m].

        ``own`` float[B, K, V] are the model's log-probabilities at ``place``.
        """
        tokens, terms = _rows(self.tokens, parents), _rows(self.terms, parents)
        images = torch.arange(len(parents), device=parents.device)[:, None]
        tokens[:, :, place], terms[:, :, place] = chosen, own[images, parents, chosen].double()
        return tokens, terms

    def keep(self, images: Tensor) -> None:
        """Only ``images`` int64[k] remain."""
        self.totals, self.tokens, self.terms = self.totals[images], self.tokens[images], self.terms[images]


@torch.no_grad()
def beam_search(
    model: CaptionDecoder[FeaturesT, CacheT],
    features: FeaturesT,
    task: Task,
    beams: int,
    count: int,
    length_power: float = 1.0,
) -> list[list[Hypothesis]]:
    """Up to ``count`` captions of each image, the highest score first, by following ``beams`` beginnings.

    The score is log-probability / tokens ** ``length_power``. Every beginning may end at every step, also one that is
    not among the most probable. An image's search is over once none of its beginnings can come to a higher score than
    the last of its ``count`` captions: of whichever length, since what follows can only lower a log-probability.
    """
    num_first, num_images, device = len(task.first), len(task.keys), task.keys.device
    tokens = torch.zeros(num_images, beams, task.max_tokens, dtype=torch.int64, device=device)
    tokens[:, :, :num_first] = task.beginnings(beams).view(num_images, beams, -1)
    terms = torch.zeros(tokens.shape, dtype=torch.float64, device=device)
    # In the beginning there is one, beside impossible ones.
    totals = torch.full((num_images, beams), -torch.inf, dtype=torch.float64, device=device)
    totals[:, 0] = 0
    live = Live(totals, tokens, terms)
    longest = task.max_tokens - num_first
    found = Found(
        torch.full((num_images, count), -torch.inf, dtype=torch.float64, device=device),
        torch.zeros(num_images, count, longest, dtype=torch.int64, device=device),
        torch.zeros(num_images, count, longest, dtype=torch.float64, device=device),
        torch.zeros(num_images, count, dtype=torch.int64, device=device),
    )
    images = torch.arange(num_images, device=device)
    cache = model.start_decoding(features, task.max_tokens - 1)
    newest = task.beginnings(beams)
    for place in range(num_first, task.max_tokens):
        length = place + 1 - num_first
        logits = model.decode(newest, cache)[:, -1]
        own = logits.log_softmax(dim=-1)
        ruled = task.rules(own, live.tokens.flatten(0, 1)[:, :place])
        own, ruled = own.view(len(images), beams, -1), ruled.view(len(images), beams, -1)
        is_last = place == task.max_tokens - 1
        if is_last:
            reached, parents, chosen = _best(live.totals, ruled, beams)
        else:
            reached = live.totals + ruled[:, :, task.end_id]
            parents = torch.arange(beams, device=device).expand(len(images), -1)
            chosen = torch.full_like(parents, task.end_id)
        ended_tokens, ended_terms = (part[:, :, num_first:] for part in live.continued(parents, chosen, own, place))
        ended = Found(reached / length**length_power, ended_tokens, ended_terms, torch.full_like(parents, length))
        found.add(images, ended)
        if is_last:
            break
        reached, parents, chosen = _best(live.totals, _without(ruled, task.end_id), beams)
        best = reached[:, 0]
        reached, parents, chosen = _in_place(reached, parents, chosen)
        live.tokens, live.terms = live.continued(parents, chosen, own, place)
        live.totals = reached
        _move(cache, parents, reached)
        # What follows is at most as probable as certain, so that the score is at most that of the best length.
        best_score = torch.maximum(best / (length + 1) ** length_power, best / longest**length_power)
        unfinished = (best > -torch.inf) & (best_score > found.scores[images, -1])
        left = int(unfinished.sum())
        if left == 0:
            break
        if 2 * left <= len(images):
            stays = unfinished.nonzero()[:, 0]
            cache.keep_images(stays)
            live.keep(stays)
            images = images[stays]
        newest = live.tokens[:, :, place : place + 1].flatten(0, 1)
    return found.hypotheses()


def _best(totals: Tensor, steps: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` most probable continuations of each image, the most probable first.

    ``totals`` float64[B, K] and ``steps`` float[B, K, V] -> their log-probability float64[B, count], parent and token
    int64[B, count].
    """
    # Of each beginning, no more than ``count`` can be among the best.
    values, tokens = steps.topk(min(count, steps.shape[2]), dim=2)
    reached = (totals[:, :, None] + values.double()).flatten(1)
    best, order = reached.topk(count, dim=1)
    return best, order // values.shape[2], tokens.flatten(1).gather(1, order)


def _without(steps: Tensor, token: int) -> Tensor:
    changed = steps.clone()
    changed[:, :, token] = -torch.inf
    return changed


def _in_place(reached: Tensor, parents: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same continuations, [B, K] each, in an order in which as many as possible stand where their parent stood.

    Of several of one parent the first stays; the others take the places of beginnings that end here. So the cache has
    to move little, and no place is read after it is written.
    """
    beams = parents.shape[1]
    same = parents[:, :, None] == parents[:, None, :]
    stays = ~same.tril(-1).any(dim=2)
    places = torch.arange(beams, device=parents.device)
    is_free = ~(parents[:, :, None] == places).any(dim=1)
    free = is_free.long().argsort(dim=1, descending=True, stable=True)
    number = ((~stays).cumsum(dim=1) - 1).clamp(min=0)
    place = torch.where(stays, parents, free.gather(1, number))
    order = place.argsort(dim=1)
    return reached.gather(1, order), parents.gather(1, order), chosen.gather(1, order)


def _move(cache: CacheT, parents: Tensor, reached: Tensor) -> None:
    """Lets the cache follow the continuations [B, K], as far as there are any."""
    places = torch.arange(parents.shape[1], device=parents.device)
    image, place = ((parents != places) & (reached > -torch.inf)).nonzero().unbind(dim=1)
    if len(image):
        first = image * parents.shape[1]
        cache.copy_rows(first + parents[image, place], first + place)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """[B, K, T], int64[B, m] -> [B, m, T]."""
    return values.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))
