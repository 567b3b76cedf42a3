"""Classification of images by their nearest images: do images of one concept lie together?"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mmlm.core.computing import exact_float32
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.ranges import check_counts, check_positive
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from mmlm.evaluation.zero_shot import class_means, with_ends

_AT_ONCE = 2**22
"""Similarities that are held at once: as many whole rows as that allows, and one at least."""
_TIE = 1e-6
"""Similarities that differ by less are equal. Rounding moves a float32 product of unit vectors by about a tenth of it,
and by different amounts in tiles of different sizes, so that two copies of an image would not tie without it."""

GROUP = FigureGroup(
    "Nearest neighbours",
    "Do the images that lie nearest to an image show its concept? Only the images whose concept has another image take "
    "part.",
)


class Neighbours:
    """Leave-one-out k-nearest-neighbour accuracy of the images by concept (Wu et al., arXiv:1805.01978, section 3.4).

    The images that take part are those whose concept has at least one other image. Each is classified by its ``k``
    nearest among the others: each of these votes for its own concept with weight exp(s / temperature), where s is the
    cosine similarity, and the concept of the largest sum wins. The paper looks for the neighbours of a test image among
    1.28 million training images, with k = 200; here they come from the same split, and the default is smaller. With
    fewer than ``k`` other images, all of them vote.

    Ties are shared, so that the order of the images never shows:

    - Images that are equally near, and for which not enough of the k places are left, get the same part of a vote each:
      the places left, divided by their number.
    - Concepts of equal votes share the image evenly.

    A model that embeds everything alike thus guesses the most frequent concept of the *other* images. If one concept is
    more frequent than the rest by two images or more, it reaches ``chance``; if all are equally frequent, it is always
    wrong, because an image is one vote short for its own concept.

    Args:
        k: the number of neighbours.
        temperature: the lower, the more the nearest of the neighbours decide; a high one, such as 1000, counts heads.

    Raises:
        ArgumentError: no neighbours, or a temperature that is not above 0 and finite.
    """

    needs_decoder = False
    figures: Mapping[str, Figure] = {
        "top1": Figure(
            "Top 1",
            "the vote of the nearest other images is for the image's own concept",
            GROUP,
            title="Nearest neighbours, top 1",
            share=True,
            higher_is_better=True,
            chance="chance",
            low="top1/low",
            high="top1/high",
            shown=("table", "chart", "compare", "console"),
        ),
        "by_concept": Figure(
            "Mean over concepts",
            "top 1 of each concept, every concept weighing the same",
            GROUP,
            share=True,
            higher_is_better=True,
            chance="chance_by_concept",
            low="by_concept/low",
            high="by_concept/high",
            shown=("table",),
        ),
        "images": Figure(
            "Images", "how many took part; 0 if no two images have the same concept", GROUP, shown=("table",)
        ),
    }

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        check_counts({"k": k})
        check_positive("temperature", temperature)
        self.k, self.temperature = k, temperature
        self.rules: Mapping[str, str] = {"k": str(k), "temperature": str(temperature), "ties": "shared"}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``images``, the number that take part, ``top1`` and ``by_concept``, with intervals and chances.

        ``chance`` is the share of the most frequent concept. A guess of that concept is right for one concept and wrong
        for the others, hence ``chance_by_concept``. If no two images have the same concept, ``images`` is 0, and that
        is all.
        """
        _, number, count = split.image_concept.to(split.device).unique(return_inverse=True, return_counts=True)
        takes_part = count[number] > 1
        yield "images", float(takes_part.sum())
        # Of the splits of a run, some may name concepts and others not: an error would take the values of all of them.
        if not takes_part.any():
            return
        images = split.image_embedding[takes_part]
        _, labels, count = number[takes_part].unique(return_inverse=True, return_counts=True)
        # The row among those that take part, of each image that does.
        place = takes_part.cumsum(dim=0) - 1

        def of_batch(item: EncodedBatch) -> Tensor:
            own = slice(item.rows.start, item.rows.stop)
            return shares_right(images, labels, place[own][takes_part[own]], self.k, self.temperature)

        right = torch.cat(split.over_batches(of_batch))
        of_concept = class_means(right, labels)
        yield from with_ends("top1", right, labels)
        yield from with_ends("by_concept", of_concept, torch.arange(len(of_concept)))
        yield "chance", count.max().item() / len(labels)
        yield "chance_by_concept", 1 / len(count)


def shares_right(
    images: Tensor, labels: Tensor, rows: Tensor, k: int, temperature: float, at_once: int = _AT_ONCE
) -> Tensor:
    """float64[R]: for each of the images ``rows``, 1 if its own concept wins the vote, 1/n if n concepts do, or 0.

    ``images`` float[B, E] have unit length, B >= 2; ``labels`` int64[B] number the concepts; ``rows`` int64[R]. At most
    ``at_once`` similarities are held at a time, but always one row of B.
    """
    # Similarities that differ by less than _TIE are equal, so votes that differ by less than this factor are. Above a
    # temperature of 1 the factor stays where it is, which leaves room for the rounding of the sums.
    margin = math.exp(-_TIE / min(temperature, 1.0))
    found = [torch.zeros(0, dtype=torch.float64, device=images.device)]
    for tile in rows.split(max(1, at_once // len(images))):
        votes = neighbour_votes(images, labels, tile, k, temperature)
        # At a very low temperature the margin may be 0, and a concept without a vote must not win by that.
        wins = (votes >= votes.amax(dim=1, keepdim=True) * margin) & (votes > 0)
        found.append(wins.gather(1, labels[tile][:, None])[:, 0].double() / wins.sum(dim=1))
    return torch.cat(found)


def neighbour_votes(images: Tensor, labels: Tensor, rows: Tensor, k: int, temperature: float) -> Tensor:
    """float64[R, K]: the votes for each of the K concepts from the ``k`` nearest other images of each of ``rows``.

    The arguments are those of ``shares_right``. Votes are relative to that of the nearest image, which has weight 1, so
    that a low temperature does not overflow. An image that equals others in its distance has a part of a vote.
    """
    with exact_float32(images.device):
        similar = (images[rows].float() @ images.float().T).double()
    similar.scatter_(1, rows[:, None], -math.inf)
    places = min(k, len(images) - 1)
    best = similar.topk(places, dim=1).values
    nearest, last = best[:, :1], best[:, -1:]
    nearer = similar > last + _TIE
    # Not ">=": similarities that are not numbers would get no vote, and a broken model would seem to be merely bad.
    voters = ~(similar < last - _TIE)
    places_left = places - nearer.sum(dim=1, keepdim=True)
    part = places_left.double() / (voters & ~nearer).sum(dim=1, keepdim=True)
    weights = torch.exp((similar - nearest) / temperature) * torch.where(nearer, 1.0, part)
    row, voter = voters.nonzero(as_tuple=True)
    concepts = int(labels.max()) + 1
    votes = weights.new_zeros(len(rows) * concepts)
    votes.index_add_(0, row * concepts + labels[voter], weights[row, voter])
    return votes.view(len(rows), concepts)
