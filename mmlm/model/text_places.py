"""How many places a model computes for the tokens of texts, and how many of these hold one."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from mmlm.core.views import EMBED, TextView, View
from mmlm.model.model import ImageTextModel


@runtime_checkable
class CountsPlaces(Protocol):
    """A text encoder or decoder that computes fewer places than the C * T of padded texts."""

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """The places that its token-wise layers compute for texts of int64[C] ``lengths``, padded to ``num_tokens``.

        Counted without the image's tokens. Attention itself may need more: it works on padded texts.
        """
        ...


@dataclass(frozen=True)
class TextPlaces:
    """Numbers of places, over all passes of a batch's texts."""

    tokens: int = 0
    """Those that hold a token."""
    computed: int = 0
    """All that token-wise layers (norms, projections, feed-forward) compute."""

    def __add__(self, other: "TextPlaces") -> "TextPlaces":
        return TextPlaces(self.tokens + other.tokens, self.computed + other.computed)


def text_places(model: ImageTextModel, lengths: Tensor, num_tokens: int, views: Collection[View]) -> TextPlaces:
    """The places of all passes that ``views`` ask for, over the texts of one micro-batch.

    ``lengths`` is int64[C] on the CPU, start and end included; the texts are padded to ``num_tokens``. A pass that
    predicts tokens reads all but the last of each. Texts that an objective pairs with other images do not count.
    """
    found = TextPlaces()
    if len(lengths) == 0:
        return found
    if EMBED in views:
        found += _of(model.text_encoder or model.decoder, lengths, num_tokens)
    for view in views:
        if isinstance(view, TextView) and model.decoder is not None:
            prefix = 0
            if model.decoder.fusion == "prefix" and model.bridge is not None:
                prefix = model.bridge.num_memory
            found += _of(model.decoder, lengths - 1, num_tokens - 1, prefix)
    return found


def _of(part: object, lengths: Tensor, num_tokens: int, prefix: int = 0) -> TextPlaces:
    """Of one pass, in which ``prefix`` tokens of the image stand in front of each text."""
    everything = len(lengths) * num_tokens
    if isinstance(part, CountsPlaces):
        everything = part.places(lengths + prefix, num_tokens + prefix) - len(lengths) * prefix
    return TextPlaces(int(lengths.sum()), everything)
