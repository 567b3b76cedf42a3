"""Hard negatives: for each image a text of another image, for each text another image, out of those of all ranks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.distributed import gather
from mmlm.core.errors import UserError
from mmlm.core.flow import Batch, StepKey, Stream
from mmlm.objectives.shared.keys import Keys, positives

NegativeRule = Literal["sampled", "hardest"]

NONE = -1
"""The choice where there is no negative."""
_TILE_SIZE = 1 << 22
"""Similarities that are held at once, and"""
_TILE_ROWS = 1024
"""of so many queries at most."""


@dataclass(frozen=True)
class Embedded:
    """Embedded images and captions: those of a rank, or of all."""

    image: Tensor
    """float32[B, E], unit length."""
    text: Tensor
    """float32[C, E], unit length."""
    keys: Keys
    """Who is whose positive."""
    image_key: Tensor
    """int64[B]: ``Batch.image_key``."""
    text_key: Tensor
    """int64[C]: ``Batch.caption_image_key``."""

    @classmethod
    def of(cls, image: Tensor, text: Tensor, batches: Sequence[Batch]) -> "Embedded":
        """All of a rank's embeddings, in the order of its micro-batches."""
        image_key = torch.cat([batch.image_key for batch in batches])
        text_key = torch.cat([batch.caption_image_key for batch in batches])
        return cls(image, text, Keys.of(*batches), image_key, text_key)

    def gathered(self) -> "Embedded":
        """Those of all ranks, joined in rank order."""
        keys = self.keys.gathered()
        return Embedded(gather(self.image), gather(self.text), keys, gather(self.image_key), gather(self.text_key))


@dataclass(frozen=True)
class HardNegatives:
    """How one negative is chosen for each query (an image or a text) among candidates of the other kind::

        sampled  p(k) = exp(s[k] / temperature) / sum_k' exp(s[k'] / temperature)
        hardest  argmax_k s[k]

    with ``s`` the cosine similarities and k over the candidates that are no positive of the query. Text-only captions
    and images without a caption are no candidates and get no negative.

    A sampled choice inverts the cumulative distribution over the candidates, sorted by their keys, at a number that is
    keyed by (seed, step, query): it depends on what the candidates are, and not on the order, the rank or the
    micro-batch they come in. Rows of similarities are made some at a time: [B, C] is never held when it is large.

    Raises:
        UserError: a temperature that is no positive number, or one that does nothing.
    """

    rule: NegativeRule
    temperature: float | None

    def __post_init__(self) -> None:
        if self.rule == "hardest" and self.temperature is not None:
            raise UserError(f"temperature: {self.temperature} does nothing with negatives=hardest; set it to null")
        if self.rule == "sampled" and not (self.temperature is not None and 0 < self.temperature < math.inf):
            raise UserError(f"temperature: {self.temperature} must be above 0 to sample negatives, such as 0.07")

    def texts(self, own: Embedded, everyone: Embedded, step_key: StepKey) -> Tensor:
        """int64[B]: for each of a rank's ``own`` images one of ``everyone``'s captions, or ``NONE``."""

        def allowed(rows: slice) -> Tensor:
            negative = ~positives(_some_images(own.keys, rows), everyone.keys)
            return negative & own.keys.has_caption[rows, None] & everyone.keys.has_image

        uniform = step_key.uniform(own.image_key, 1, Stream.NEGATIVE_TEXT)
        return self._choose(own.image, everyone.text, everyone.text_key.argsort(stable=True), uniform, allowed)

    def images(self, own: Embedded, everyone: Embedded, step_key: StepKey) -> Tensor:
        """int64[C]: for each of a rank's ``own`` captions one of ``everyone``'s images, or ``NONE``."""

        def allowed(rows: slice) -> Tensor:
            captions = _some_captions(own.keys, rows)
            tiles = _tiles(len(everyone.image), len(captions.caption_key))
            negative = torch.cat([~positives(_some_images(everyone.keys, images), captions) for images in tiles]).T
            return negative & captions.has_image[:, None] & everyone.keys.has_caption

        uniform = step_key.uniform(own.text_key, 1, Stream.NEGATIVE_IMAGE)
        return self._choose(own.text, everyone.image, everyone.image_key.argsort(stable=True), uniform, allowed)

    def _choose(
        self,
        queries: Tensor,
        candidates: Tensor,
        order: Tensor,
        uniform: Tensor,
        allowed: Callable[[slice], Tensor],
    ) -> Tensor:
        """int64[R]: the candidate of each query, or ``NONE``.

        Args:
            queries: float[R, E].
            candidates: float[K, E].
            order: int64[K], in which the candidates are read.
            uniform: float64[R, 1] in [0, 1).
            allowed: bool[r, K] of some of the queries: the candidates, as they stand, that each may get.
        """
        chosen = torch.full_like(uniform[:, 0], NONE, dtype=torch.int64)
        candidates = candidates[order]
        for rows in _tiles(len(queries), len(candidates)):
            may = allowed(rows)[:, order]
            with torch.autocast(queries.device.type, enabled=False):  # half precision would make ties of neighbours
                similarities = (queries[rows] @ candidates.T).masked_fill(~may, -math.inf)
            place = self._place(similarities, may, uniform[rows])
            chosen[rows] = torch.where(may.any(dim=1), order[place], NONE)
        return chosen

    def _place(self, similarities: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
        """int64[r]: a column of float[r, K] (-inf where it is not allowed); it means nothing if none is allowed."""
        if self.temperature is None:
            return similarities.argmax(dim=1)
        weights = (similarities.double() / self.temperature).softmax(dim=1)
        beyond = weights.cumsum(dim=1) > uniform
        # The first that is beyond and allowed; the first that is allowed, should rounding leave none beyond.
        return beyond.int().masked_fill(~allowed, -1).argmax(dim=1)


def _tiles(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, each small; none of an empty matrix."""
    count = max(1, min(_TILE_ROWS, _TILE_SIZE // max(1, columns)))
    return (slice(first, min(rows, first + count)) for first in range(0, rows if columns else 0, count))


def _some_images(keys: Keys, rows: slice) -> Keys:
    """The images ``rows`` with the captions they have."""
    theirs = (keys.image_index >= rows.start) & (keys.image_index < rows.stop)
    return Keys(
        image_concept=keys.image_concept[rows],
        caption_concept=keys.caption_concept[theirs],
        caption_key=keys.caption_key[theirs],
        image_index=keys.image_index[theirs] - rows.start,
    )


def _some_captions(keys: Keys, rows: slice) -> Keys:
    """All images and the captions ``rows``."""
    return Keys(
        image_concept=keys.image_concept,
        caption_concept=keys.caption_concept[rows],
        caption_key=keys.caption_key[rows],
        image_index=keys.image_index[rows],
    )
