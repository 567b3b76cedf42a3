"""Cross-entropies of the rows and the columns of a similarity matrix that is never held as a whole.

The matrix is computed tile by tile: once in the forward pass for the log-sum-exps, and again in the backward pass for
the gradients (Inf-CL, arXiv:2410.17243). Unlike in that paper, one product of a tile serves both directions, image to
text and text to image: four products of the size of the matrix, where two separate directions with autograd take six.
Over several ranks each tile is computed by one rank only, the one that has its images: texts are gathered, images are
not, and the log-sum-exps of the columns are combined over ranks.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmlm.core.distributed import max_over_ranks, sum_over_ranks
from mmlm.objectives.kernels.gradients_in_forward import SavingContext

TILE = 1024
"""Rows and columns of a tile. A matrix of one tile is kept for the backward pass, as autograd would keep it."""

PositiveTile = Callable[[slice, slice], Tensor]
"""(rows, columns) -> bool[r, c]: true where image and text are positives; see ``Candidates.positive``."""


def tiles(num_rows: int, num_columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """The rows and columns of each tile of a matrix; tiles at its edges may be smaller."""
    for row in range(0, num_rows, size):
        for column in range(0, num_columns, size):
            yield slice(row, min(row + size, num_rows)), slice(column, min(column + size, num_columns))


def cross_entropies(
    image: Tensor, text: Tensor, scale: Tensor, positive: PositiveTile, label_smoothing: float = 0.0, tile: int = TILE
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax cross-entropy of every row and every column of ``s = scale * image @ text.T``, with soft targets::

        rows[i]    = logsumexp_j s[i, j] - (1 - a) * mean_{j positive of i} s[i, j] - a * mean_j s[i, j]
        columns[j] = logsumexp_i s[i, j] - (1 - a) * mean_{i positive of j} s[i, j] - a * mean_i s[i, j]

    with ``a = label_smoothing``. Every row needs a positive, and every column whose loss is read. Computed in at least
    float32, also under autocast.

    Each rank gives its own images and *all* texts, the same texts on every rank; i in ``columns`` runs over the images
    of all ranks. The gradients are those of the sum of all ranks' losses; the gradient of ``text`` is the part that
    comes from this rank's images, so summing it over ranks gives the whole.

    Args:
        image: float[n, E], this rank's.
        text: float[N, E], of all ranks.
        scale: float[].
        positive: makes tiles of the matrix of positives, bool[n, N].
        label_smoothing: share of the target that is spread over the row (or column).
        tile: rows and columns of a tile.

    Returns:
        ``rows`` float[n], ``columns`` float[N], and bool[n]: true for rows in which some positive is larger than every
        other entry (a tie is false).
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    return _CrossEntropies.apply(image.to(dtype), text.to(dtype), scale.to(dtype), positive, label_smoothing, tile)


class _Context(SavingContext):
    """The context of ``_CrossEntropies``, with the values beside tensors that its backward pass needs."""

    tiles: "_Tiles"
    label_smoothing: float


class _CrossEntropies(torch.autograd.Function):
    """The autograd function of ``cross_entropies``."""

    @staticmethod
    def forward(
        ctx: _Context,
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
    def backward(ctx: _Context, of_rows: Tensor, of_columns: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of s is ``of_rows * (p - t) + of_columns * (p' - t')``: p and p' are the softmaxes over rows and
        columns, t and t' the targets, ``of_rows`` and ``of_columns`` the gradients of the results."""
        image, text, scale, row_sums, row_counts, column_sums, column_counts = ctx.saved_tensors
        # Every rank has computed all columns' losses and may weigh them differently: the sum of all ranks' losses has
        # the sum of their gradients, and each rank applies it to its own images.
        a, of_columns = ctx.label_smoothing, sum_over_ranks(of_columns)
        # The targets t are a / (number of all) everywhere, plus (1 - a) / (number of positives) at a positive.
        row_hits = (1 - a) * of_rows / row_counts[0].clamp(min=1)
        column_hits = (1 - a) * of_columns / column_counts[0].clamp(min=1)
        row_all, column_all = a * of_rows / row_counts[1], a * of_columns / column_counts[1]
        image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
        for i, j, similarity, hits in ctx.tiles:
            # exp(s - logsumexp) is the softmax: no second pass over the row is needed.
            change = (similarity - row_sums[i, None]).exp_().mul_(of_rows[i, None])
            change.add_((similarity - column_sums[None, j]).exp_().mul_(of_columns[None, j]))
            change[hits] -= row_hits[i][hits[0]] + column_hits[j][hits[1]]
            if a > 0:
                change.sub_(row_all[i, None] + column_all[None, j])
            add_product(image_gradient[i], change, text[j])
            add_product(text_gradient[j], change.T, ctx.tiles.scaled[i])
        # s = scale * image . text, and image_gradient is still the gradient with respect to scale * image.
        scale_gradient = (image_gradient * image).sum()
        return image_gradient.mul_(scale), text_gradient, scale_gradient, None, None, None


Hits = tuple[Tensor, Tensor]
"""Rows and columns of the k positives of a tile, int64[k] each: most tiles of a large batch have none."""


class _Tiles:
    """The tiles of similarities and positives. Each iteration computes them anew, unless there is just one tile."""

    def __init__(self, scaled: Tensor, text: Tensor, positive: PositiveTile, size: int) -> None:
        self.scaled, self.text, self.positive = scaled, text, positive
        self.places = list(tiles(len(scaled), len(text), size))
        self.kept: tuple[Tensor, Hits] | None = None

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Hits]]:
        """For each tile its rows, its columns, the similarities float[r, c] and its positives."""
        for i, j in self.places:
            found = self.kept or (product(self.scaled[i], self.text[j].T), hits_of(self.positive(i, j)))
            if len(self.places) == 1:
                self.kept = found
            yield i, j, *found


def hits_of(positive: Tensor) -> Hits:
    """The rows and columns where bool[r, c] is true."""
    rows, columns = positive.nonzero(as_tuple=True)
    return rows, columns


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product in the factors' own precision: under autocast, bfloat16 rounds 100 to the nearest half."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds the matrix product to ``total``, in the factors' own precision."""
    with torch.autocast(left.device.type, enabled=False):
        total.addmm_(left, right)


class _RunningSoftmax:
    """Running log-sum-exp and sums of K rows (or columns), to which tiles are added one after another.

    The exponentials are taken relative to the largest entry so far, and rescaled when a larger one comes (the online
    softmax of arXiv:1805.02867), so that none overflows.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.maximum = like.new_full((size,), float("-inf"))
        """The largest entry so far."""
        self.exponentials = like.new_zeros(size)
        """Sum of exp(s - maximum)."""
        self.hits, self.num_hits = like.new_zeros(size), like.new_zeros(size)
        """Sum and number of the entries that are positives."""
        self.all, self.num_all = like.new_zeros(size), like.new_zeros(size)
        """Sum (kept for label smoothing only) and number of all entries."""

    def add(self, place: slice, similarity: Tensor, hits: Hits, dim: int, sum_all: bool) -> None:
        """Adds a tile: its similarities are summed over ``dim`` and belong to the rows (or columns) at ``place``."""
        maximum = torch.maximum(self.maximum[place], similarity.amax(dim))
        exponentials = (similarity - maximum.unsqueeze(dim)).exp_().sum(dim)
        # The old sum is relative to the old maximum. Before the first tile it is 0, and so is the factor, exp(-inf).
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
        """Adds the entries that the other ranks have in the same columns."""
        maximum = max_over_ranks(self.maximum)
        self.exponentials *= (self.maximum - maximum).exp_()
        self.maximum = maximum
        sums = torch.stack([self.exponentials, self.hits, self.num_hits, self.all, self.num_all])
        self.exponentials, self.hits, self.num_hits, self.all, self.num_all = sum_over_ranks(sums)

    def log_sum_exp(self) -> Tensor:
        """float[K]: the log-sum-exp of all entries so far."""
        return self.maximum + self.exponentials.log()

    def losses(self, label_smoothing: float) -> Tensor:
        """float[K]: the cross-entropies with soft targets."""
        target = (1 - label_smoothing) * self.hits / self.num_hits.clamp(min=1)
        if label_smoothing > 0:
            target = target + label_smoothing * self.all / self.num_all
        return self.log_sum_exp() - target

    def for_backward(self) -> tuple[Tensor, Tensor]:
        """The log-sum-exps float[K]; and float[2, K], the number of positives and the number of all entries."""
        return self.log_sum_exp(), torch.stack([self.num_hits, self.num_all])


class BestPositive:
    """Finds the rows whose largest similarity is that of a positive, from tiles that are added one after another."""

    def __init__(self, image: Tensor) -> None:
        self._positive = image.new_full((len(image),), float("-inf"))
        self._other = self._positive.clone()

    def add(self, rows: slice, similarity: Tensor, hits: Hits) -> None:
        """Adds a tile float[r, c] and its positives; the tile is as before when this returns."""
        values = similarity[hits]
        self._positive[rows].scatter_reduce_(0, hits[0], values, "amax")
        similarity[hits] = float("-inf")  # for a moment, to find the largest of the others without a copy
        self._other[rows] = torch.maximum(self._other[rows], similarity.amax(1))
        similarity[hits] = values

    def correct(self) -> Tensor:
        """bool[n]: true for rows in which some positive is larger than every other entry."""
        return self._positive > self._other
