"""Which tokens may be drawn, and the draw itself, which is a function of seed, image, step and number of the sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.keyed_random import keyed_uniform, stream

_STREAM = stream("mmlm.evaluation.generation.sampling")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The rules act in this order, each on the distribution that the one before has left."""

    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def distribution(self, log_probabilities: Tensor) -> Tensor:
        """float[R, V], not necessarily normalised -> the probabilities float64[R, V] that tokens are drawn with."""
        scores = log_probabilities.double() / self.temperature
        if self.top_k is not None:
            least = scores.topk(min(self.top_k, scores.shape[1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None:
            shares, order = scores.softmax(dim=1).sort(dim=1, descending=True, stable=True)
            # A token stays if those before it do not reach the share yet; the first always does.
            missing = shares.cumsum(dim=1) - shares < self.top_p
            stays = torch.zeros_like(missing).scatter(1, order, missing)
            scores = scores.masked_fill(~stays, -torch.inf)
        if self.min_p is not None:
            shares = scores.softmax(dim=1)
            scores = scores.masked_fill(shares < self.min_p * shares.amax(dim=1, keepdim=True), -torch.inf)
        return scores.softmax(dim=1)

    def draw(self, log_probabilities: Tensor, keys: Tensor, step: int, copies: int) -> Tensor:
        """int64[B * copies]: a token for each row of ``log_probabilities`` float[B * copies, V].

        ``keys`` int64[B] are those of the images. More copies of an image keep the draws of the first ones.
        """
        uniform = keyed_uniform(self.seed, step, keys, copies, _STREAM).flatten()
        reached = self.distribution(log_probabilities).cumsum(dim=1)
        # The first token whose cumulated share is above the number. Divided by the last, which rounding keeps from 1.
        token = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)[:, 0]
        return token
