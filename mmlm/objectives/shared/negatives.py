"""Hard negatives by a rule and a keyed draw: for each image a text, and for each text an image, out of all ranks'."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.distributed import gather
from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_random import stream
from mmlm.core.views import StepKey
from mmlm.objectives.shared.candidates import NONE
from mmlm.objectives.shared.keys import Keys, Labels

_TEXT_STREAM = stream("mmlm.objectives.shared.negatives.texts")
_IMAGE_STREAM = stream("mmlm.objectives.shared.negatives.images")

NegativeRule = Literal["sampled", "hardest"]

_TILE_SIZE = 1 << 22
"""The most similarities that are held at once."""
_TILE_ROWS = 1024
"""The most queries that are compared at once."""


@dataclass(frozen=True)
class Embedded:
    """The embeddings of images and captions, of one rank or of all, with what is needed to choose among them."""

    image: Tensor
    """float32[B, E], unit length."""
    text: Tensor
    """float32[C, E], unit length."""
    keys: Keys
    """The integers that decide which images and captions are positives of each other."""
    image_key: Tensor
    """int64[B]: ``Batch.image_key``, the key of an image's random numbers."""
    text_key: Tensor
    """int64[C]: ``Batch.caption_image_key``, the key of a caption's random numbers."""

    @classmethod
    def of(cls, image: Tensor, text: Tensor, batches: Sequence[Batch]) -> "Embedded":
        """The embeddings of all of a rank's micro-batches, in the order of ``batches``."""
        image_key = torch.cat([batch.image_key for batch in batches])
        text_key = torch.cat([batch.caption_image_key for batch in batches])
        return cls(image, text, Keys.of(*batches), image_key, text_key)

    def gathered(self) -> "Embedded":
        """The embeddings of all ranks, joined in rank order. Every rank has to call it."""
        keys = self.keys.gathered()
        return Embedded(gather(self.image), gather(self.text), keys, gather(self.image_key), gather(self.text_key))


@dataclass(frozen=True)
class HardNegatives:
    """The rule that chooses one negative for each query (an image or a text) among candidates of the other kind::

        sampled  p(k) = exp(s[k] / temperature) / sum_k' exp(s[k'] / temperature)
        hardest  argmax_k s[k]

    where ``s`` are the cosine similarities and k runs over the candidates that are no positive of the query. Text-only
    captions and images without a caption are no candidates, and as queries they get no negative.

    A sampled choice inverts the cumulative distribution over the candidates, which are sorted by their keys, at a
    uniform number that is keyed by (seed, step, query). The choice therefore depends on the set of candidates only, not
    on their order, rank or micro-batch. A large matrix of similarities is made some rows at a time.

    Raises:
        UserError: ``sampled`` without a positive temperature, or ``hardest`` with a temperature.
    """

    rule: NegativeRule
    temperature: float | None

    def __post_init__(self) -> None:
        if self.rule == "hardest" and self.temperature is not None:
            raise ArgumentError(f"temperature: {self.temperature} does nothing with negatives=hardest; set it to null")
        if self.rule == "sampled" and not (self.temperature is not None and 0 < self.temperature < math.inf):
            raise ArgumentError(f"temperature: {self.temperature} must be above 0 to sample negatives, such as 0.07")

    def texts(self, own: Embedded, everyone: Embedded, step_key: StepKey) -> Tensor:
        """int64[B]: for each image of the rank's ``own`` the number of a caption of ``everyone``, or ``NONE``."""
        labels = Labels.of(own.keys, everyone.keys)
        asks, offers = own.keys.has_caption, everyone.keys.has_image

        def allowed(rows: slice) -> Tensor:
            return ~labels.positive(rows, slice(None)) & asks[rows, None] & offers

        uniform = step_key.uniform(own.image_key, 1, _TEXT_STREAM)
        return self._choose(own.image, everyone.text, everyone.text_key.argsort(stable=True), uniform, allowed)

    def images(self, own: Embedded, everyone: Embedded, step_key: StepKey) -> Tensor:
        """int64[C]: for each caption of the rank's ``own`` the number of an image of ``everyone``, or ``NONE``."""
        labels = Labels.of(everyone.keys, own.keys)
        asks, offers = own.keys.has_image, everyone.keys.has_caption

        def allowed(rows: slice) -> Tensor:
            return ~labels.positive(slice(None), rows).T & asks[rows, None] & offers

        uniform = step_key.uniform(own.text_key, 1, _IMAGE_STREAM)
        return self._choose(own.text, everyone.image, everyone.image_key.argsort(stable=True), uniform, allowed)

    def _choose(
        self,
        queries: Tensor,
        candidates: Tensor,
        order: Tensor,
        uniform: Tensor,
        allowed: Callable[[slice], Tensor],
    ) -> Tensor:
        """int64[R]: for each query the number of the chosen candidate, or ``NONE``.

        Args:
            queries: float[R, E].
            candidates: float[K, E].
            order: int64[K], the order in which candidates are read: sorted by key, so that it is alike on every rank.
            uniform: float64[R, 1] in [0, 1).
            allowed: for a slice of r queries bool[r, K], true for the candidates (not reordered) that a query may get.
        """
        chosen = torch.full_like(uniform[:, 0], NONE, dtype=torch.int64)
        candidates = candidates[order]
        for rows in _tiles(len(queries), len(candidates)):
            may = allowed(rows)[:, order]
            # Not under autocast: half precision would make neighbours equal, and the order decides a tie.
            with torch.autocast(queries.device.type, enabled=False):
                similarities = (queries[rows] @ candidates.T).masked_fill(~may, -math.inf)
            place = self._place(similarities, may, uniform[rows])
            chosen[rows] = torch.where(may.any(dim=1), order[place], NONE)
        return chosen

    def _place(self, similarities: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
        """int64[r]: the chosen column of each row of float[r, K] (-inf where not allowed); any if none is allowed."""
        if self.temperature is None:
            return similarities.argmax(dim=1)
        # float64: a float32 sum over many candidates is off by more than the weight of an unlikely one.
        weights = (similarities.double() / self.temperature).softmax(dim=1)
        beyond = weights.cumsum(dim=1) > uniform
        # argmax takes the first of the largest: the first column that is beyond and allowed (1) or, should rounding
        # leave none beyond, the first that is allowed (0). A column that is not allowed (-1) comes last.
        return beyond.int().masked_fill(~allowed, -1).argmax(dim=1)


def _tiles(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix such that a slice has at most ``_TILE_SIZE`` entries; none for an empty matrix."""
    count = max(1, min(_TILE_ROWS, _TILE_SIZE // max(1, columns)))
    return (slice(first, min(rows, first + count)) for first in range(0, rows if columns else 0, count))
