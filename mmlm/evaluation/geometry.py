"""How the embeddings of a split lie on the sphere: matched pairs close, items spread out, images and texts apart."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mmlm.core.figure import Figure, FigureGroup
from mmlm.evaluation.split import EncodedSplit

_AT_ONCE = 1024
"""Rows of a tile, and its columns; also the pairs that are compared at once."""

GROUP = FigureGroup(
    "Geometry",
    "How do the embeddings lie on the sphere? Alignment and uniformity are to be read together: a model that embeds "
    "everything alike has 0 in each.",
)


class Geometry:
    """Alignment and uniformity (Wang & Isola, arXiv:2005.10242) and the modality gap (Liang et al., arXiv:2203.02053).

    With x and y for embeddings of unit length:

    - alignment is the mean of ||x - y||^2 over the pairs of an image and a text that belong together (the squared
      distance, alpha = 2 in the paper);
    - uniformity is the log of the mean of exp(-2 ||x - y||^2) (t = 2 in the paper) over the pairs of two distinct
      images, and over those of two distinct texts. It lies in [-8, 0];
    - the gap is the length of the difference between the mean image embedding and the mean text embedding.

    The items are those of retrieval: all images, and all texts that read differently. A text that belongs to several
    images is in as many pairs as there are, and is one item of the uniformity and of the gap. The papers take a pair
    for each sample instead, and count a text as often as it is drawn.

    A value that the split does not define is not yielded: the alignment without a pair, the uniformity of fewer than
    two items, and the gap where images or texts are missing.
    """

    needs_decoder = False
    figures: Mapping[str, Figure] = {
        "alignment": Figure(
            "Alignment",
            "mean squared distance between an image and a text that belong together",
            GROUP,
            higher_is_better=False,
            shown=("table", "chart", "compare", "console"),
        ),
        "image_uniformity": Figure(
            "Uniformity of images",
            "log of the mean of exp(-2 d²) over the distances d between images; lower is more evenly spread",
            GROUP,
            higher_is_better=False,
            shown=("table", "chart", "compare", "console"),
        ),
        "text_uniformity": Figure(
            "Uniformity of texts",
            "the same between distinct texts",
            GROUP,
            higher_is_better=False,
            shown=("table", "chart", "compare", "console"),
        ),
        "modality_gap": Figure(
            "Modality gap",
            "distance between the mean image embedding and the mean text embedding",
            GROUP,
            shown=("table", "chart", "compare"),
        ),
    }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``alignment``, ``image_uniformity``, ``text_uniformity`` and ``modality_gap``, as far as defined."""
        images, texts, pairs = split.gallery.image_embedding, split.gallery.text_embedding, split.gallery.pairs
        if len(pairs):
            yield "alignment", alignment(images, texts, pairs)
        if len(images) > 1:
            yield "image_uniformity", uniformity(images)
        if len(texts) > 1:
            yield "text_uniformity", uniformity(texts)
        if len(images) and len(texts):
            yield "modality_gap", modality_gap(images, texts)


# All of these compute in float64. It keeps long sums exact, so that no order of the items shows, and neither autocast
# nor TF32 touches it. Rows become float64 as they are read, since a copy of all of them would take twice their memory.


def alignment(images: Tensor, texts: Tensor, pairs: Tensor, at_once: int = _AT_ONCE) -> float:
    """The mean squared distance of pairs.

    ``images`` float[B, E]; ``texts`` float[K, E]; ``pairs`` int64[P, 2], on any device: (image row, text row), P >= 1.
    ``at_once`` pairs are compared at a time.
    """
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    for chunk in pairs.split(at_once):
        image_row, text_row = chunk.to(images.device).unbind(dim=1)
        total += (images[image_row].double() - texts[text_row].double()).square().sum()
    return total.item() / len(pairs)


def uniformity(items: Tensor, at_once: int = _AT_ONCE) -> float:
    """The log of the mean of exp(-2 ||x - y||^2) over the pairs of two distinct rows of float[N, E] ``items``, N >= 2.

    A pair counts once whatever its order, so only the tiles on and above the diagonal are made, each of at most
    ``at_once`` rows and columns.
    """
    total = torch.zeros((), dtype=torch.float64, device=items.device)
    tiles = items.split(at_once)
    for number, tile in enumerate(tiles):
        rows = tile.double()
        for other in range(number, len(tiles)):
            kernel = torch.exp(-2 * _squared_distances(rows, tiles[other].double()))
            # On the diagonal a tile holds each of its pairs twice, and every row with itself.
            total += kernel.triu(diagonal=1).sum() if other == number else kernel.sum()
    return math.log(total.item() / math.comb(len(items), 2))


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """The distance between the means of float[B, E] ``images`` and of float[K, E] ``texts``; B and K are at least 1."""
    return (_mean(images) - _mean(texts)).norm().item()


def _mean(items: Tensor) -> Tensor:
    """float64[E]: the mean of the rows of float[N, E]."""
    total = torch.zeros(items.shape[1], dtype=torch.float64, device=items.device)
    for tile in items.split(_AT_ONCE):
        total += tile.double().sum(dim=0)
    return total / len(items)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """float64[M, N]: ||x - y||^2 between the rows of float64[M, E] and float64[N, E]."""
    # Lengths are not taken for 1, which float32 embeddings have only to 7 digits.
    lengths = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    # Rounding can put the distance of equal rows below 0, and their log-mean above it.
    return (lengths - 2 * left @ right.T).clamp(min=0)
