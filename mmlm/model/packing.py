"""Captions without their padding, and the values of each caption's image."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_LEAST_MULTIPLE, _LARGEST_MULTIPLE = 8, 64
MOST_PADDING = 0.03
"""The share of the computed places that padding may take, in batches of ordinary size (from 267 tokens on)."""


def pack_multiple(num_real: int) -> int:
    """What the number of packed rows is rounded up to a multiple of: a power of two, at most 3% of the real tokens.

    Each new shape compiles a kernel (oneDNN: 3 ms), so that there should be few of them.
    """
    multiple = _LARGEST_MULTIPLE
    while multiple > max(_LEAST_MULTIPLE, MOST_PADDING * num_real):
        multiple //= 2
    return multiple


@dataclass(frozen=True)
class Layout:
    """Converts C captions between padded ``[C, T, ...]`` and packed ``[P', ...]``.

    Token-wise layers (norms, projections, feed-forward) run on packed states: the real tokens of all captions, one
    caption after the other, then a few padding places that fill P' up to a multiple of ``pack_multiple``. Only
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
    def of_lengths(cls, lengths: Tensor, num_tokens: int, packed: bool = True, multiple: int | None = None) -> "Layout":
        """The layout of captions with ``lengths`` int64[C] real tokens, padded to ``num_tokens``.

        P' is a multiple of ``multiple``; None is that of ``pack_multiple``. With ``packed``, the number of tokens is
        read on the CPU, which waits for the device. On the meta device, where there are no lengths to read, every place
        is kept.
        """
        if not packed or lengths.is_meta:
            return cls(len(lengths), num_tokens, None)
        real = cls.mask(lengths, num_tokens).flatten()
        index = real.nonzero().squeeze(1)
        num_real = len(index)
        multiple = pack_multiple(num_real) if multiple is None else multiple
        if num_real % multiple:
            # The first padding places fill up; fewer than needed where the padded batch has no more.
            filler = (~real).nonzero().squeeze(1)[: -num_real % multiple]
            index = torch.cat([index, filler])
        return cls(len(lengths), num_tokens, index, num_real)

    @staticmethod
    def places(lengths: Tensor, num_tokens: int, packed: bool = True) -> int:
        """P' of ``of_lengths``, or C * T without packing."""
        num_real, most = int(lengths.sum()), len(lengths) * num_tokens
        return min(most, num_real + -num_real % pack_multiple(num_real)) if packed else most

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


@dataclass(frozen=True)
class LikeLengths:
    """Captions of about one length."""

    rows: Tensor
    """int64[N]: their numbers, ascending."""
    longest: int
    """Tokens of the longest."""


def like_lengths(lengths: Tensor) -> list[LikeLengths]:
    """Few groups of captions, of int64[C] ``lengths``, of which at most ``MOST_PADDING`` is padding; C is at least 1.

    From one group for each length on, the two neighbours are joined whose union adds the least padding, as long as that
    is allowed. The lengths are read on the CPU, which waits for the device.
    """
    found = lengths.cpu().unique(return_counts=True)
    # Of each group its shortest and longest caption, and how many there are.
    groups = [(size, size, count) for size, count in zip(found[0].tolist(), found[1].tolist(), strict=True)]
    allowed = MOST_PADDING * sum(size * count for size, _, count in groups)
    while len(groups) > 1:
        added = [(right[1] - left[1]) * left[2] for left, right in pairwise(groups)]
        least = min(range(len(added)), key=added.__getitem__)
        if added[least] > allowed:
            break
        allowed -= added[least]
        left, right = groups[least : least + 2]
        groups[least : least + 2] = [(left[0], right[1], left[2] + right[2])]
    return [
        LikeLengths(((lengths >= first) & (lengths <= last)).nonzero().squeeze(1), last) for first, last, _ in groups
    ]


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
