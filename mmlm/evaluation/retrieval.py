"""Image-text retrieval, both ways, where an image may have several captions and a caption several images.

A query counts as found at k if any of its positives is among the k best candidates; a wrong candidate of equal score
comes first (``ranks.py``). What the candidates and positives are is a protocol's matter, and changes R@k by tens of
points (``Protocol``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup, Place
from mmlm.core.intervals import share_interval
from mmlm.evaluation.gallery import Gallery
from mmlm.evaluation.intervals import recall_by_chance
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.ranks import Ranked, rank_positives
from mmlm.evaluation.split import EncodedSplit

Protocol = Literal["distinct", "coco", "paired"]
"""What the candidates and the positives of retrieval are.

``distinct``: the texts that differ. Captions that read the same are one candidate, and every text of an image's concept
is right.
``coco``: every caption is a candidate of its own, and an image's own captions are right, no other that reads the same
(COCO and Flickr30k with five captions an image, arXiv:1412.2306; the recall of CLIP_benchmark).
``paired``: the first caption of each image alone, one right answer for each query, as for sets of pairs.
"""
TIES = "a wrong candidate of equal score comes first"
"""How ties count, in every protocol."""
CUTOFFS = (1, 5, 10)
"""The k of R@k, as in COCO and Flickr30k retrieval (arXiv:1412.2306)."""

IMAGE_TO_TEXT = FigureGroup(
    "Image to text", "How often is a true caption of the image found among all captions of the split?"
)
TEXT_TO_IMAGE = FigureGroup(
    "Text to image", "How often is an image of the caption found among all images of the split?"
)

OTHER_WAY = {"image_to_text": "text_to_image", "text_to_image": "image_to_text"}
"""What is looked for in one direction is what looks in the other."""


def _recall(way: str, group: FigureGroup, cutoff: int, shown: tuple[Place, ...], headline: str = "") -> Figure:
    """R@k of one direction. What chance gives depends on the split: on how many positives each query has."""
    meaning = "it is the nearest" if cutoff == 1 else f"it is among the {cutoff} nearest"
    name = f"R@{cutoff}"
    title = f"{group.name}, {name}"
    return Figure(
        name,
        meaning,
        group,
        title,
        share=True,
        higher_is_better=True,
        chance=f"{way}/{name}/chance",
        low=f"{way}/{name}/low",
        high=f"{way}/{name}/high",
        count=f"{way}/queries",
        among=f"{OTHER_WAY[way]}/queries",
        shown=("table", *shown),
        headline=headline,
    )


def _spread(way: str, group: FigureGroup) -> dict[str, Figure]:
    """The figures of one direction that take all ranks into account."""
    title = group.name.lower()

    return {
        f"{way}/mAP": Figure(
            "mAP",
            "mean average precision over all true answers",
            group,
            f"mAP, {title}",
            share=True,
            higher_is_better=True,
            shown=("table",),
            low=f"{way}/mAP/low",
            high=f"{way}/mAP/high",
            count=f"{way}/queries",
        ),
        f"{way}/median_rank": Figure(
            "Median rank",
            "of the best true answer, 1 being the best",
            group,
            f"Median rank, {title}",
            higher_is_better=False,
            shown=("table",),
            low=f"{way}/median_rank/low",
            high=f"{way}/median_rank/high",
            count=f"{way}/queries",
        ),
    }


# Three ranks a direction would crowd the page with charts; the table has them all.
FIGURES = {
    "image_to_text/R@1": _recall("image_to_text", IMAGE_TO_TEXT, 1, ("compare", "console")),
    "image_to_text/R@5": _recall(
        "image_to_text",
        IMAGE_TO_TEXT,
        5,
        ("chart", "compare", "console"),
        "for {value} of {images} a true caption is among the five nearest{of_captions}",
    ),
    "image_to_text/R@10": _recall("image_to_text", IMAGE_TO_TEXT, 10, ()),
    **_spread("image_to_text", IMAGE_TO_TEXT),
    "text_to_image/R@1": _recall("text_to_image", TEXT_TO_IMAGE, 1, ()),
    "text_to_image/R@5": _recall("text_to_image", TEXT_TO_IMAGE, 5, ("chart", "compare")),
    "text_to_image/R@10": _recall("text_to_image", TEXT_TO_IMAGE, 10, ()),
    **_spread("text_to_image", TEXT_TO_IMAGE),
}
"""What the names of ``retrieval_values`` are under ``distinct``, but for those of their helpers."""


def figures_of(protocol: Protocol) -> dict[str, Figure]:
    """``FIGURES`` of a protocol; the heading of another than ``distinct`` names it."""
    if protocol == "distinct":
        return dict(FIGURES)
    return {
        name: replace(
            figure,
            group=FigureGroup(f"{figure.group.name}, {protocol}", figure.group.question),
            title=f"{figure.heading} ({protocol})",
            shown=tuple(place for place in figure.shown if place != "console"),
            headline="",
        )
        for name, figure in FIGURES.items()
    }


@dataclass(frozen=True)
class RetrievalScores:
    """The ranks of each query's positives in both directions."""

    image_to_text: Ranked
    """Of each image, among the captions."""
    text_to_image: Ranked
    """Of each caption, among the images."""


def score_retrieval(
    image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, chunk_size: int | None = None
) -> RetrievalScores:
    """Ranks in both directions.

    ``image_embedding`` float[B, E], ``text_embedding`` float[C, E] (unit length for cosine similarity), ``positives``
    int64[P, 2]: pairs (image row, caption row) that belong together, see ``positive_pairs``. ``chunk_size`` and what is
    raised are those of ``rank_positives``.
    """
    return RetrievalScores(
        image_to_text=rank_positives(image_embedding, text_embedding, positives, chunk_size, "images"),
        text_to_image=rank_positives(text_embedding, image_embedding, positives.flip(1), chunk_size, "captions"),
    )


def gallery_under(protocol: Protocol, split: EncodedSplit, rows: Sequence[int] | None = None) -> Gallery:
    """The images and texts that are retrieved under a protocol, with the pairs that are right.

    ``rows`` are the captions that the split is taken to have, by default all. Images without a text and texts
    without an image are left in; ``Gallery.paired`` leaves them out.
    """
    rows = range(len(split.captions)) if rows is None else rows
    if protocol == "distinct":
        return split.gallery if len(rows) == len(split.captions) else split.gallery_of(rows)
    image_of = split.image_index.tolist()
    own = [row for row in rows if image_of[row] != TEXT_ONLY and split.captions[row].source is None]
    if protocol == "paired":
        own = list({image_of[row]: row for row in reversed(own)}.values())[::-1]
    chosen = torch.tensor(own, dtype=torch.int64)
    text_embedding = torch.cat([item.text_embedding for item in split.batches])
    return Gallery(
        image_embedding=split.image_embedding,
        text_embedding=text_embedding[chosen.to(text_embedding.device)],
        pairs=torch.stack([split.image_index.cpu()[chosen], torch.arange(len(own))], dim=1),
        texts=tuple(split.captions[row].text for row in own),
        languages=tuple(split.captions[row].language for row in own),
    )


@dataclass(frozen=True)
class Direction:
    """What was looked for in one direction, and found."""

    way: str
    ranked: Ranked
    queries: tuple[str, ...]
    """Of each query the image's id; of a text, with the text."""
    concept: Tensor
    """int64[Q]."""
    positives: Tensor
    """int64[Q]: how many of the candidates are right."""
    candidates: int


def both_directions(
    protocol: Protocol, split: EncodedSplit, rows: Sequence[int] | None = None
) -> tuple[Direction, Direction]:
    """Retrieval from images to texts and from texts to images, among the captions ``rows``.

    Images that no text belongs to, and texts that belong to no image, are left out: as queries and as candidates.
    Raises UserError where nothing is left.
    """
    whole = gallery_under(protocol, split, rows)
    gallery = whole.paired()
    if not len(gallery.pairs):
        raise UserError(f"no image of the split '{split.name}' has a caption to be found by")
    found = score_retrieval(gallery.image_embedding, gallery.text_embedding, gallery.pairs)
    row_of_image = whole.pairs[:, 0].unique()
    concept = split.image_concept.cpu()[row_of_image]
    images, texts = gallery.pairs.unbind(dim=1)
    num_images, num_texts = len(concept), len(gallery.texts)
    # A text that several concepts have goes with the first of its images.
    image_of_text = torch.full((num_texts,), num_images).scatter_reduce_(0, texts, images, "amin")
    of_image, of_text = torch.bincount(images, minlength=num_images), torch.bincount(texts, minlength=num_texts)
    ids = [split.image_ids[row] for row in row_of_image.tolist()]
    with_text = [f"{ids[image]}: {text}" for image, text in zip(image_of_text.tolist(), gallery.texts, strict=True)]
    return (
        Direction("image_to_text", found.image_to_text, tuple(ids), concept, of_image, num_texts),
        Direction("text_to_image", found.text_to_image, tuple(with_text), concept[image_of_text], of_text, num_images),
    )


def retrieval_values(
    protocol: Protocol, split: EncodedSplit, rows: Sequence[int] | None = None
) -> Iterator[tuple[str, float]]:
    """Yields the values of ``both_directions`` with their helpers (``of_ranks``). Raises UserError as that does."""
    for one in both_directions(protocol, split, rows):
        yield from of_ranks(one.way, one.ranked, one.concept, one.positives, one.candidates)


def retrieval_items(protocol: Protocol, split: EncodedSplit) -> Iterator[ItemValues]:
    """Yields what each R@k and mAP is the mean of, query by query. Raises UserError as ``both_directions``."""
    for one in both_directions(protocol, split):
        for cutoff in CUTOFFS:
            yield ItemValues(f"{one.way}/R@{cutoff}", one.queries, one.concept, one.ranked.best <= cutoff)
        yield ItemValues(f"{one.way}/mAP", one.queries, one.concept, one.ranked.average_precision)


def of_ranks(
    way: str, ranked: Ranked, concept: Tensor, positives: Tensor, candidates: int
) -> Iterator[tuple[str, float]]:
    """Yields the values of the direction ``way``.

    They are the number of queries, each R@k with its interval and its chance, and mean average precision and median
    rank with their intervals.

    ``ranked`` is of Q queries; ``concept`` and ``positives`` int64[Q]: of each query what it shows (queries of one
    concept are not independent), and how many of the ``candidates`` are right.
    """
    of_query = concept.tolist()
    yield f"{way}/queries", float(len(ranked.best))
    for cutoff in CUTOFFS:
        name = f"{way}/R@{cutoff}"
        yield name, recall_at(ranked.best, cutoff)
        low, high = share_interval((ranked.best <= cutoff).double().tolist(), of_query)
        yield f"{name}/low", low
        yield f"{name}/high", high
        yield f"{name}/chance", recall_by_chance(positives, candidates, cutoff)
    low, high = share_interval(ranked.average_precision.tolist(), of_query)
    yield f"{way}/mAP", ranked.average_precision.mean().item()
    yield f"{way}/mAP/low", low
    yield f"{way}/mAP/high", high
    low, high = median_interval(ranked.best, of_query)
    yield f"{way}/median_rank", ranked.best.double().quantile(0.5).item()
    yield f"{way}/median_rank/low", low
    yield f"{way}/median_rank/high", high


def recall_at(ranks: Tensor, cutoff: int) -> float:
    """R@cutoff: the share, in [0, 1], of the queries (``ranks`` int64[Q]) whose rank is at most ``cutoff``."""
    return (ranks <= cutoff).double().mean().item()


def median_interval(ranks: Tensor, cluster: Sequence[int]) -> tuple[float, float]:
    """The 95% interval of the median of ``ranks`` int64[Q], whose queries of one ``cluster`` are not independent.

    The interval of the share of queries that are at most the median, read off the ranks in order (Woodruff, JASA 1952).
    """
    median = ranks.double().quantile(0.5).item()
    share = (ranks <= median).double()
    low, high = share_interval(share.tolist(), cluster)
    # Ranks are whole numbers, of which many may be equal: the share at the median is then above a half.
    above = share.mean().item()
    ends = torch.tensor([0.5 - (above - low), 0.5 + (high - above)], dtype=torch.float64).clamp(0, 1)
    lower, upper = ranks.double().quantile(ends).tolist()
    return min(lower, median), max(upper, median)
