"""Cross-entropies of the rows and the columns of a similarity matrix that is never held as a whole.

The matrix is computed tile by tile, once in the forward pass for the log-sum-exps and once again in the backward pass
for the gradients (Inf-CL, arXiv:2410.17243). Unlike there, one product of a tile serves both directions, image to text
and text to image: four products of the size of the matrix where two separate directions with autograd take six. Over
ranks a tile is computed once too, where its images are: the columns' log-sum-exps are put together over ranks, and
images are not gathered at all.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mmlm.core.distributed import max_over_ranks, sum_over_ranks

TILE = 1024
"""Rows and columns of a tile. A matrix that is no larger is kept for the backward pass, as autograd would."""

PositiveTile = Callable[[slice, slice], Tensor]
"""(rows, columns) -> bool[r, c]: who is whose positive; see ``Candidates.positive``."""


def tiles(num_rows: int, num_columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each tile; those at the end may be smaller."""
    for row in range(0, num_rows, size):
        for column in range(0, num_columns, size):
            yield slice(row, min(row + size, num_rows)), slice(column, min(column + size, num_columns))


def cross_entropies(
    image: Tensor, text: Tensor, scale: Tensor, positive: PositiveTile, label_smoothing: float = 0.0, tile: int = TILE
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax cross-entropy of every row and every column of ``s = scale * image @ text.T``, with soft targets::

        rows[i]    = logsumexp_j s[i, j] - (1 - a) * mean_{j positive of i} s[i, j] - a * mean_j s[i, j]
        columns[j] = logsumexp_i s[i, j] - (1 - a) * mean_{i positive of j} s[i, j] - a * mean_i s[i, j]

    with ``a = label_smoothing``. Every row and column needs a positive. It is computed in at least float32, also under
    autocast. Each rank gives its own images and *all* texts, the same on every rank: i in ``columns`` runs over the
    images of all ranks. The gradients are those of the sum of what all ranks make of their results; that of ``text`` is
    the part of this rank's images.

    Args:
        image: float[n, E], this rank's.
        text: float[N, E], of all ranks.
        scale: float[].
        positive: tiles of who is whose positive, bool[n, N] as a whole.
        label_smoothing: share of the target that is spread over the row (or column).
        tile: rows and columns of a tile.

    Returns:
        ``rows`` float[n], ``columns`` float[N], and bool[n] whether the largest of a row is a positive; where it is
        equally large as one that is none, it is not.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    return _CrossEntropies.apply(image.to(dtype), text.to(dtype), scale.to(dtype), positive, label_smoothing, tile)


class _CrossEntropies(torch.autograd.Function):
    """See ``cross_entropies``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        positive: PositiveTile,
        label_smoothing: float,
        tile: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = _RunningSoftmax(image, len(image)), _RunningSoftmax(text, len(text))
        best = BestPositive(image)
        scaled = image * scale
        found = _Tiles(scaled, text, positive, tile)
        for i, j, similarity, hits in found:
            rows.add(i, similarity, hits, 1, label_smoothing > 0)
            columns.add(j, similarity, hits, 0, label_smoothing > 0)
            best.add(i, similarity, hits)
        columns.add_other_ranks()
        ctx.save_for_backward(image, text, scale, *rows.for_backward(), *columns.for_backward())
        ctx.tiles, ctx.label_smoothing = found, label_smoothing
        correct = best.correct()
        ctx.mark_non_differentiable(correct)
        return rows.losses(label_smoothing), columns.losses(label_smoothing), correct

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_rows: Tensor, of_columns: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """With ``p`` the softmax and ``t`` the targets: ``ds = of_rows * (p - t) + of_columns * (p' - t')``."""
        image, text, scale, row_sums, row_counts, column_sums, column_counts = ctx.saved_tensors
        a, of_columns = ctx.label_smoothing, sum_over_ranks(of_columns)
        row_hits, column_hits = (1 - a) * of_rows / row_counts[0], (1 - a) * of_columns / column_counts[0]
        row_all, column_all = a * of_rows / row_counts[1], a * of_columns / column_counts[1]
        image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
        for i, j, similarity, hits in ctx.tiles:
            change = (similarity - row_sums[i, None]).exp_().mul_(of_rows[i, None])
            change.add_((similarity - column_sums[None, j]).exp_().mul_(of_columns[None, j]))
            change[hits] -= row_hits[i][hits[0]] + column_hits[j][hits[1]]
            if a > 0:
                change.sub_(row_all[i, None] + column_all[None, j])
            add_product(image_gradient[i], change, text[j])
            add_product(text_gradient[j], change.T, ctx.tiles.scaled[i])
        # s is scale times a product of which image_gradient is the gradient.
        scale_gradient = (image_gradient * image).sum()
        return image_gradient.mul_(scale), text_gradient, scale_gradient, None, None, None


Hits = tuple[Tensor, Tensor]
"""Rows and columns of the positives of a tile, int64[k] each: in most tiles of a large batch there are none."""


class _Tiles:
    """Tiles of similarities and positives, computed anew each time they are gone through unless there is just one."""

    def __init__(self, scaled: Tensor, text: Tensor, positive: PositiveTile, size: int) -> None:
        self.scaled, self.text, self.positive = scaled, text, positive
        self.places = list(tiles(len(scaled), len(text), size))
        self.kept: tuple[Tensor, Hits] | None = None

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Hits]]:
        """Rows, columns, float[r, c] similarities and the positives."""
        for i, j in self.places:
            found = self.kept or (product(self.scaled[i], self.text[j].T), hits_of(self.positive(i, j)))
            if len(self.places) == 1:
                self.kept = found
            yield i, j, *found


def hits_of(positive: Tensor) -> Hits:
    """Where bool[r, c] is true."""
    return positive.nonzero(as_tuple=True)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product in the precision of its factors: under autocast bfloat16 rounds 100 to the nearest half."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds it to ``total``, likewise."""
    with torch.autocast(left.device.type, enabled=False):
        total.addmm_(left, right)


class _RunningSoftmax:
    """What the tiles of each of K rows (or columns) that have been seen add up to."""

    def __init__(self, like: Tensor, size: int) -> None:
        self.maximum = like.new_full((size,), float("-inf"))
        self.exponentials = like.new_zeros(size)
        """Sum of exp(s - maximum)."""
        self.hits, self.num_hits = like.new_zeros(size), like.new_zeros(size)
        """Sum and number of the positives."""
        self.all, self.num_all = like.new_zeros(size), like.new_zeros(size)
        """Sum (only when it is asked for) and number of all."""

    def add(self, place: slice, similarity: Tensor, hits: Hits, dim: int, sum_all: bool) -> None:
        """A tile, summed over ``dim``."""
        maximum = torch.maximum(self.maximum[place], similarity.amax(dim))
        exponentials = (similarity - maximum.unsqueeze(dim)).exp_().sum(dim)
        self.exponentials[place] *= (self.maximum[place] - maximum).exp_()
        self.exponentials[place] += exponentials
        self.maximum[place] = maximum
        values, index = similarity[hits], hits[1 - dim]
        self.hits[place].index_add_(0, index, values)
        self.num_hits[place].index_add_(0, index, torch.ones_like(values))
        if sum_all:
            self.all[place] += similarity.sum(dim)
        self.num_all[place] += similarity.shape[dim]

    def add_other_ranks(self) -> None:
        """What the other ranks have seen of the same columns."""
        maximum = max_over_ranks(self.maximum)
        self.exponentials *= (self.maximum - maximum).exp_()
        self.maximum = maximum
        sums = torch.stack([self.exponentials, self.hits, self.num_hits, self.all, self.num_all])
        self.exponentials, self.hits, self.num_hits, self.all, self.num_all = sum_over_ranks(sums)

    def log_sum_exp(self) -> Tensor:
        """float[K]."""
        return self.maximum + self.exponentials.log()

    def losses(self, label_smoothing: float) -> Tensor:
        """float[K] cross-entropies."""
        target = (1 - label_smoothing) * self.hits / self.num_hits
        if label_smoothing > 0:
            target = target + label_smoothing * self.all / self.num_all
        return self.log_sum_exp() - target

    def for_backward(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exps float[K], and the numbers of positives and of all, float[2, K]."""
        return self.log_sum_exp(), torch.stack([self.num_hits, self.num_all])


class BestPositive:
    """Whether the largest similarity of each row is one of a positive."""

    def __init__(self, image: Tensor) -> None:
        self._positive = image.new_full((len(image),), float("-inf"))
        self._other = self._positive.clone()

    def add(self, rows: slice, similarity: Tensor, hits: Hits) -> None:
        """A tile float[r, c] and its positives."""
        values = similarity[hits]
        self._positive[rows].scatter_reduce_(0, hits[0], values, "amax")
        similarity[hits] = float("-inf")
        self._other[rows] = torch.maximum(self._other[rows], similarity.amax(1))
        similarity[hits] = values

    def correct(self) -> Tensor:
        """bool[n]."""
        return self._positive > self._other
