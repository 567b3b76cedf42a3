"""InfoNCE between images and texts whose denominator leaves out the positives (decoupled contrastive learning)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmlm.core.distributed import gather, sum_over_ranks
from mmlm.core.figure import Figure, loss_term
from mmlm.core.loss import Loss, Term
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.kernels.tiled import TILE, PositiveTile, product, tiles
from mmlm.objectives.shared.candidates import Candidates, Positives
from mmlm.objectives.shared.keys import Keys

LOWEST = -1e30
"""The similarity of a pair that is left out. A log-sum-exp over nothing but -inf would have the gradient NaN."""


class DecoupledInfoNCE(InfoNCE):
    """Contrastive loss without the positives in the denominator (DCL, arXiv:2110.06848).

    For similarities ``s[b, c] = exp(log_scale) * image[b] . text[c]`` and positives ``p[b, c]`` in {0, 1}::

        image_to_text = mean_b  log sum_{c: p[b, c] = 0} exp(s[b, c]) - sum_c p[b, c] * s[b, c] / sum_c p[b, c]
        text_to_image = mean_c  log sum_{b: p[b, c] = 0} exp(s[b, c]) - sum_b p[b, c] * s[b, c] / sum_b p[b, c]
        loss          = (image_to_text + text_to_image) / 2

    With one positive, InfoNCE multiplies all gradients of an anchor by the share that its negatives have in the
    softmax: little is learned where the positive is found easily, as it is in a small batch. Here is no such factor.
    The loss is negative once the positives are well ahead.

    The first mean is over the images that have a negative in the whole batch, the second over such captions: without a
    negative there is nothing to be ahead of. Text-only captions and images without a caption take no part.

    Differences from the paper: its negatives are the images of both views; here an image has texts as negatives, and a
    text has images. An anchor may have several positives, whose similarities are averaged. The paper's temperature is
    fixed. A learned one falls as long as the positives are ahead of the negatives, usually until 1 / ``max_scale``:
    choose ``max_scale`` by that, or ``learned_temperature: false``. The paper's weighting of the positives (DCLW) is
    left out.

    Texts that are false of their image take no part.

    The matrix of similarities is computed in tiles, once forward and once backward, and never held as a whole.

    Args:
        temperature: initial temperature, that is 1 / exp(log_scale).
        learned_temperature: train ``log_scale``, which is kept in [0, ln ``max_scale``].
        max_scale: upper bound of exp(log_scale).
        positives: ``concept``, ``text`` or ``own``; see ``InfoNCE``.

    Raises:
        ArgumentError: a temperature that is not in [1 / ``max_scale``, 1].
    """

    reads_negatives = False
    figures: Mapping[str, Figure] = {
        "": loss_term("log-sum-exp of the negatives minus the mean of the positives, both directions, nats"),
        **{name: InfoNCE.figures[name] for name in ("accuracy", "temperature")},
    }

    def __init__(
        self,
        temperature: float = 0.07,
        learned_temperature: bool = True,
        max_scale: float = 100.0,
        positives: Positives = "concept",
    ) -> None:
        super().__init__(temperature, learned_temperature, max_scale, positives=positives)

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """See ``Comparison``: one term, and the figures ``accuracy`` and ``temperature``."""
        candidates = Candidates.of(keys, self.positives)
        own, everyone = image[candidates.images], gather(text[candidates.captions])
        scale = self.scale()
        of_images, of_captions, correct = summaries(own * scale, everyone, candidates.positive)
        # This rank has seen its own images only: each caption's other images are those of the other ranks.
        of_captions = _joined(gather(of_captions[None]).unbind())[:, candidates.own]
        (rows, row_exists), (columns, column_exists) = _losses(of_images), _losses(of_captions)
        sizes = torch.stack([row_exists.sum(), column_exists.sum(), torch.full_like(scale, len(own))])
        num_rows, num_columns, num_images = sum_over_ranks(sizes).clamp(min=1)
        # Each direction is a mean over its own count. To be one term, which is a sum over one count, the sum over
        # captions is scaled from the captions' count to the images'.
        total = (rows.sum() + columns.sum() * num_rows / num_columns) / 2
        # A figure is a sum over a count too: as a mean over images, the ranks' temperatures add up to the temperature.
        temperature = len(own) / scale.detach()
        return Loss(
            {"decoupled": Term(total, num_rows)},
            {"accuracy": Term(correct.sum(), num_images), "temperature": Term(temperature, num_images)},
        )


def summaries(image: Tensor, text: Tensor, positive: PositiveTile, size: int = TILE) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss needs to know of each row and column of ``s = image @ text.T``.

    A summary has three rows: the log-sum-exp of the negatives (about ``LOWEST``, or -inf, if there is none), the sum of
    the positives, and their number.

    Args:
        image: float[n, E], of this rank, times the scale.
        text: float[N, E], of all ranks.
        positive: makes tiles of the matrix of positives, bool[n, N].
        size: rows and columns of a tile.

    Returns:
        The summaries float[3, n] of the rows and float[3, N] of the columns, both with a gradient path even if n is 0;
        and bool[n]: true for rows in which some positive is larger than every negative.
    """
    of_rows, of_columns, of_best = defaultdict(list), defaultdict(list), defaultdict(list)
    # A rank without images has one tile of no rows: its columns must lead back to the texts, whose backward pass is
    # shared with the other ranks.
    for i, j in tiles(max(1, len(image)), len(text), size):
        # Neither the similarities nor the positives of a tile are kept for the backward pass.
        row, column, best = checkpoint(
            _tile, image[i], text[j], positive, i, j, use_reentrant=False, preserve_rng_state=False
        )
        of_rows[i.start].append(row)
        of_columns[j.start].append(column)
        of_best[i.start].append(best)
    # Without any text there is no tile; then these empty ones are all, and keep the gradient path.
    rows = [image[:0].sum(dim=1).expand(3, 0), *(_joined(parts) for parts in of_rows.values())]
    columns = [text[:0].sum(dim=1).expand(3, 0), *(_joined(parts) for parts in of_columns.values())]
    largest = [image.new_zeros(2, 0), *(torch.stack(parts).amax(dim=0) for parts in of_best.values())]
    largest_positive, largest_negative = torch.cat(largest, dim=1)
    return torch.cat(rows, dim=1), torch.cat(columns, dim=1), largest_positive > largest_negative


def _tile(
    image: Tensor, text: Tensor, positive_tile: PositiveTile, rows: slice, columns: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """The summaries float[3, r] and float[3, c] of a tile; and float[2, r]: the largest positive and negative."""
    similarity, positive = product(image, text.T), positive_tile(rows, columns)
    negatives, positives = similarity.masked_fill(positive, LOWEST), similarity.masked_fill(~positive, 0.0)
    row, column = (
        torch.stack([negatives.logsumexp(dim), positives.sum(dim), positive.sum(dim).to(similarity.dtype)])
        for dim in (1, 0)
    )
    with torch.no_grad():
        best = torch.stack([similarity.masked_fill(~positive, LOWEST).amax(dim=1), negatives.amax(dim=1)])
    return row, column, best


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """float[3, K]: the summary of rows (or columns) from those float[3, K] of their parts."""
    stacked = torch.stack(list(parts))
    return torch.cat([stacked[:, :1].logsumexp(dim=0), stacked[:, 1:].sum(dim=0)])


def _losses(summary: Tensor) -> tuple[Tensor, Tensor]:
    """float[K] and bool[K]: the loss of each anchor, 0 without a negative, and whether it has a negative."""
    negatives, positives, count = summary
    exists = negatives > LOWEST / 2
    return torch.where(exists, negatives - positives / count, 0.0), exists
