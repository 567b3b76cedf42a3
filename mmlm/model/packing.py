"""Captions without their padding, and the values of each caption's image."""

from dataclasses import dataclass

import torch
from torch import Tensor

PACK_MULTIPLE = 64
"""The number of packed rows is rounded up to a multiple of this, since each new shape compiles a kernel (oneDNN: 3 ms).
"""


@dataclass(frozen=True)
class Layout:
    """Converts C captions between padded ``[C, T, ...]`` and packed ``[P', ...]``.

    Token-wise layers (norms, projections, feed-forward) run on packed states: the real tokens of all captions, one
    caption after the other, then a few padding places that fill P' up to a multiple of ``PACK_MULTIPLE``. Only
    attention needs the padded states. In each padded row real tokens come first, so that causal attention never sees
    padding.
    """

    num_captions: int
    num_tokens: int
    index: Tensor | None
    """int64[P']: place of each packed token in the flattened [C * T]; None: no packing, every place is kept."""
    num_real: int = 0
    """P: number of real tokens; they come first in ``index``. Only set with packing."""

    @classmethod
    def of_lengths(
        cls, lengths: Tensor, num_tokens: int, packed: bool = True, multiple: int = PACK_MULTIPLE
    ) -> "Layout":
        """The layout of captions with ``lengths`` int64[C] real tokens, padded to ``num_tokens``.

        With ``packed``, the number of tokens is read on the CPU, which waits for the device. On the meta device, where
        there are no lengths to read, every place is kept.
        """
        if not packed or lengths.is_meta:
            return cls(len(lengths), num_tokens, None)
        real = cls.mask(lengths, num_tokens).flatten()
        index = real.nonzero().squeeze(1)
        num_real = len(index)
        if num_real % multiple:
            # The first padding places fill up; fewer than needed where the padded batch has no more.
            filler = (~real).nonzero().squeeze(1)[: -num_real % multiple]
            index = torch.cat([index, filler])
        return cls(len(lengths), num_tokens, index, num_real)

    @staticmethod
    def mask(lengths: Tensor, num_tokens: int) -> Tensor:
        """bool[C, T]: true at real tokens."""
        return torch.arange(num_tokens, device=lengths.device)[None, :] < lengths[:, None]

    def pack(self, padded: Tensor) -> Tensor:
        """[C, T, ...] -> [P', ...]: drops padding, except for the places that fill up P'."""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def pad(self, packed: Tensor) -> Tensor:
        """[P', ...] -> [C, T, ...]: padding is zeros, or leftovers at the places that filled up P'."""
        shape = (self.num_captions, self.num_tokens, *packed.shape[1:])
        if self.index is None:
            return packed.reshape(shape)
        flat = packed.new_zeros((self.num_captions * self.num_tokens, *packed.shape[1:]))
        return flat.index_copy(0, self.index, packed).view(shape)

    def real(self, packed: Tensor) -> Tensor:
        """[P', ...] -> [P, ...]: real tokens only."""
        return packed if self.index is None else packed[: self.num_real]


def real_rows(packed: Tensor, layout: Layout, lengths: Tensor, skip: int = 0) -> Tensor:
    """[P', ...] -> [P, ...]: the states at ``lengths`` int64[C] real positions of each caption, row-major.

    ``skip`` columns stand in front of every caption, such as a prefix, and are left out.
    """
    if layout.index is not None and skip == 0:
        return layout.real(packed)
    rows = Layout.of_lengths(lengths, layout.num_tokens - skip)
    return rows.real(rows.pack(layout.pad(packed)[:, skip:]))


def rows_of(values: Tensor, image_index: Tensor) -> Tensor:
    """float[B, ...] -> float[C, ...]: the row of each caption's image.

    A text-only caption gets row 0, so callers have to mask its result. There is at least one row.
    """
    rows = image_index.clamp(min=0)
    # Several captions read one image, so the backward pass sums into a row. On an accelerator ``index_select`` sums
    # with atomic additions, in no fixed order, and indexing sums in a fixed order. On a CPU both are deterministic, and
    # indexing is three times slower.
    return values.index_select(0, rows) if values.device.type == "cpu" else values[rows]
