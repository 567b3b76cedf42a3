"""What is to be written, with which model, and what comes of it: in tokens."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.model.protocols import DecodingCache

FeaturesT = TypeVar("FeaturesT", contravariant=True)
CacheT = TypeVar("CacheT", bound=DecodingCache)


class CaptionDecoder(Protocol[FeaturesT, CacheT]):
    """The interface that decoding needs of a model, which alone knows what its features and its cache hold."""

    def start_decoding(self, features: FeaturesT, room: int | None = None) -> CacheT:
        """An empty cache for the B images of ``features``; see ``Decoder``."""
        ...

    def decode(self, tokens: Tensor, cache: CacheT) -> Tensor:
        """float[B * n, t, V]: logits after each of ``tokens`` int64[B * n, t]; see ``Decoder``. Advances the cache."""
        ...


@dataclass(frozen=True)
class Task:
    """Captions to write of B images."""

    keys: Tensor
    """int64[B], on the model's device: what samples of each image are keyed by."""
    first: tuple[int, ...]
    """Tokens that every caption begins with: the start, and the words of a prompt."""
    end_id: int
    max_tokens: int
    """Longest caption, start and end included. A caption that reaches it is cut there, and its tokens count as they
    are."""
    rules: LogitRules

    def __post_init__(self) -> None:
        if not 1 <= len(self.first) < self.max_tokens:
            raise ValueError(f"{len(self.first)} first tokens must be 1 or more, and fewer than {self.max_tokens}")

    def beginnings(self, copies: int) -> Tensor:
        """int64[B * copies, t]: the first tokens of ``copies`` captions of each image."""
        first = torch.tensor(self.first, dtype=torch.int64, device=self.keys.device)
        return first.repeat(len(self.keys) * copies, 1)


@dataclass(frozen=True)
class Hypothesis:
    """A caption in tokens."""

    tokens: tuple[int, ...]
    """Behind the start and the prompt; the end token included where it was reached."""
    log_probabilities: tuple[float, ...]
    """Of each token after those before it, natural logarithms: the model's own, whatever rules have changed."""
    score: float
    """What the captions of an image are ordered by: the sum of log-probabilities, under the rules, over the number of
    tokens to the power of the length penalty."""

    @property
    def log_probability(self) -> float:
        """Of the whole caption."""
        return sum(self.log_probabilities)
