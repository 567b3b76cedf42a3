"""Image-text retrieval, both ways: R@k where an image may have several captions and a caption several images.

A query counts as found at k if any of its positives is among the k best candidates. The rank of a query is one more
than the number of candidates that are *not* its positives and score at least as high as its best positive: counted in
one pass over a chunk of scores, without sorting. Ties are pessimistic (a wrong candidate of equal score comes first),
so that a model whose embeddings have collapsed gets 0 rather than what chance or an order of storage would give.

Scores are float32 whatever autocast or the process's matmul precision say, since bf16 and TF32 scores change R@1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.computing import exact_float32
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup, Place
from mmlm.core.intervals import share_interval
from mmlm.evaluation.intervals import recall_by_chance

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
    "text_to_image/R@1": _recall("text_to_image", TEXT_TO_IMAGE, 1, ()),
    "text_to_image/R@5": _recall("text_to_image", TEXT_TO_IMAGE, 5, ("chart", "compare")),
    "text_to_image/R@10": _recall("text_to_image", TEXT_TO_IMAGE, 10, ()),
}
"""What the names of ``RetrievalScores.items`` are; ``Retrieval`` yields those of their helpers too."""


@dataclass(frozen=True)
class RetrievalScores:
    """Rank of each query's best positive, 1 being the best, in both directions."""

    image_to_text: Tensor
    """int64[B]: for each image, among the captions."""
    text_to_image: Tensor
    """int64[C]: for each caption, among the images."""

    def items(self) -> Iterator[tuple[str, float]]:
        """Yields ``("image_to_text/R@1", share of queries)`` and so on, for CUTOFFS and both directions."""
        for direction, ranks in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            for cutoff in CUTOFFS:
                yield f"{direction}/R@{cutoff}", recall_at(ranks, cutoff)


def of_ranks(
    way: str, ranks: Tensor, concept: Tensor, positives: Tensor, candidates: int
) -> Iterator[tuple[str, float]]:
    """Yields the values of the direction ``way``: each R@k with its interval and its chance, and the number of queries.

    ``ranks``, ``concept`` and ``positives`` int64[Q]: of each query the rank, what it shows (queries of one concept are
    not independent), and how many of the ``candidates`` are right.
    """
    of_query = concept.tolist()
    yield f"{way}/queries", float(len(ranks))
    for cutoff in CUTOFFS:
        name = f"{way}/R@{cutoff}"
        yield name, recall_at(ranks, cutoff)
        low, high = share_interval((ranks <= cutoff).double().tolist(), of_query)
        yield f"{name}/low", low
        yield f"{name}/high", high
        yield f"{name}/chance", recall_by_chance(positives, candidates, cutoff)


def recall_at(ranks: Tensor, cutoff: int) -> float:
    """R@cutoff: the share, in [0, 1], of the queries (``ranks`` int64[Q]) whose rank is at most ``cutoff``."""
    return (ranks <= cutoff).double().mean().item()


def score_retrieval(
    image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, chunk_size: int = 1024
) -> RetrievalScores:
    """Ranks in both directions.

    ``image_embedding`` float[B, E], ``text_embedding`` float[C, E] (unit length for cosine similarity), ``positives``
    int64[P, 2]: pairs (image row, caption row) that belong together, see ``positive_pairs``. ``chunk_size`` queries
    are scored at a time. Raises as ``best_positive_ranks``.
    """
    return RetrievalScores(
        image_to_text=best_positive_ranks(image_embedding, text_embedding, positives, chunk_size, "images"),
        text_to_image=best_positive_ranks(text_embedding, image_embedding, positives.flip(1), chunk_size, "captions"),
    )


@torch.no_grad()
def best_positive_ranks(
    queries: Tensor, candidates: Tensor, positives: Tensor, chunk_size: int = 1024, query_name: str = "queries"
) -> Tensor:
    """int64[Q] (on the CPU): the rank of each query's best positive among the candidates, ties pessimistic.

    ``queries`` float[Q, E], ``candidates`` float[K, E], ``positives`` int64[P, 2] of (query row, candidate row);
    repeated pairs count once. Memory: ``chunk_size`` x K float32 scores.

    Raises UserError if a query (``query_name`` in the message) has no positive, ValueError for embeddings that are
    not finite (every comparison with NaN is false, which would read as a perfect rank) or shapes that do not match.
    """
    _check(queries, candidates, positives, chunk_size)
    positives = torch.unique(positives.to(queries.device), dim=0)  # sorted by query
    _check_every_query_has_one(positives, len(queries), query_name)
    starts = torch.arange(0, len(queries), chunk_size, device=queries.device)
    bounds = [*torch.searchsorted(positives[:, 0].contiguous(), starts).tolist(), len(positives)]

    ranks = torch.empty(len(queries), dtype=torch.int64)
    candidates = candidates.float()
    for chunk, start in enumerate(starts.tolist()):
        rows, columns = positives[bounds[chunk] : bounds[chunk + 1]].unbind(1)
        part = queries[start : start + chunk_size].float()
        ranks[start : start + len(part)] = _chunk_ranks(part, candidates, rows - start, columns).cpu()
    return ranks


def _chunk_ranks(queries: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """int64[Q] for float32[Q, E] queries; (rows, columns) int64[P] are their distinct positives, one or more each."""
    with exact_float32(queries.device):
        scores = queries @ candidates.T
    positive_scores = scores[rows, columns]
    best = scores.new_full((len(queries),), -torch.inf).scatter_reduce_(0, rows, positive_scores, "amax")
    # All candidates that score at least as high as the best positive, minus the positives among them.
    at_least_as_high = (scores >= best[:, None]).sum(dim=1)
    of_those_positive = torch.zeros_like(at_least_as_high).index_add_(0, rows, (positive_scores >= best[rows]).long())
    return 1 + at_least_as_high - of_those_positive


def positive_pairs(image_concept: Tensor, caption_concept: Tensor, caption_key: Tensor, image_index: Tensor) -> Tensor:
    """int64[P, 2]: all pairs (image row, caption row) that belong together, sorted, on the CPU.

    The arguments are the fields of ``Batch``, over a whole split: ``image_concept`` int64[B], ``caption_concept``
    int64[C], ``caption_key`` int64[C], ``image_index`` int64[C] (rows of ``image_concept``, or TEXT_ONLY). A text is an
    image's own if one of the image's captions, or a caption of its concept, reads so; every caption that reads so is
    positive, whatever its own concept. Work and memory are in the number of pairs, not B x C.

    Raises ValueError if the captions' tensors differ in length or ``image_index`` names a row that is not there.
    """
    image_concept, caption_concept, caption_key, image_index = (
        tensor.cpu() for tensor in (image_concept, caption_concept, caption_key, image_index)
    )
    if not len(caption_concept) == len(caption_key) == len(image_index):
        lengths = f"{len(caption_concept)}, {len(caption_key)}, {len(image_index)}"
        raise ValueError(f"caption_concept, caption_key and image_index hold {lengths} captions: give equally many")
    if len(image_index) and not TEXT_ONLY <= int(image_index.min()) <= int(image_index.max()) < len(image_concept):
        raise ValueError(
            f"image_index spans {int(image_index.min())} to {int(image_index.max())}: "
            f"there are {len(image_concept)} images, and {TEXT_ONLY} stands for none"
        )
    # First the (image, caption) pairs that belong together by image or concept, then the distinct (image, text) pairs
    # among them, then every caption that reads as such a text.
    own = (image_index != TEXT_ONLY).nonzero().squeeze(1)
    belongs = torch.cat([_equal_pairs(image_concept, caption_concept), torch.stack([image_index[own], own], dim=1)])

    _, text = torch.unique(caption_key, return_inverse=True)
    image_text = torch.unique(torch.stack([belongs[:, 0], text[belongs[:, 1]]], dim=1), dim=0)
    expanded = _equal_pairs(image_text[:, 1], text)
    return torch.unique(torch.stack([image_text[expanded[:, 0], 0], expanded[:, 1]], dim=1), dim=0)


def merge_equal_captions(positives: Tensor, caption_key: Tensor) -> tuple[Tensor, Tensor]:
    """Keeps one of the captions that read the same, so that a wrong text takes one place before the right one at most.

    ``positives`` int64[P, 2] (image row, caption row), ``caption_key`` int64[C]. Returns the caption rows to keep,
    int64[K] (the first of each text, in order), and the pairs (image row, index into the kept rows), int64[P', 2], both
    on the CPU. COCO's own protocol does not merge.
    """
    positives, caption_key = positives.cpu(), caption_key.cpu()
    _, text = torch.unique(caption_key, return_inverse=True)
    num_texts = int(text.max()) + 1 if len(text) else 0
    first = torch.full((num_texts,), len(text)).scatter_reduce_(0, text, torch.arange(len(text)), "amin")
    kept, order = first.sort()
    row_of_text = torch.empty_like(order)
    row_of_text[order] = torch.arange(num_texts)
    return kept, torch.unique(torch.stack([positives[:, 0], row_of_text[text[positives[:, 1]]]], dim=1), dim=0)


def _equal_pairs(left: Tensor, right: Tensor) -> Tensor:
    """int64[P, 2]: every (i, j) with ``left[i] == right[j]``, for int64[L] and int64[R], without an L x R matrix."""
    # In sorted ``right``, the values equal to left[i] are one run: from ``begin[i]`` on, ``count[i]`` of them.
    left = left.contiguous()
    sorted_right, order = right.sort(stable=True)
    begin = torch.searchsorted(sorted_right, left, side="left")
    count = torch.searchsorted(sorted_right, left, side="right") - begin
    rows = torch.arange(len(left)).repeat_interleave(count)
    first_of_row = (count.cumsum(0) - count).repeat_interleave(count)
    return torch.stack([rows, order[begin[rows] + torch.arange(len(rows)) - first_of_row]], dim=1)


def _check(queries: Tensor, candidates: Tensor, positives: Tensor, chunk_size: int) -> None:
    """ValueError for shapes, values or settings that ``best_positive_ranks`` cannot rank by."""
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and candidates {tuple(candidates.shape)} must be [Q, E] and [K, E]"
        )
    if not len(queries) or not len(candidates):
        raise ValueError(f"{len(queries)} queries and {len(candidates)} candidates: retrieval needs at least one each")
    if positives.ndim != 2 or positives.shape[1] != 2:
        raise ValueError(f"positives {tuple(positives.shape)} must be [P, 2]: (query row, candidate row)")
    if chunk_size < 1:
        raise ValueError(f"chunk_size {chunk_size} must be at least 1 query")
    for name, embedding in (("queries", queries), ("candidates", candidates)):
        if not torch.isfinite(embedding).all():
            row = int((~torch.isfinite(embedding).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name} hold values that are not finite, first in row {row}: they have no rank")
    limits = torch.tensor([len(queries), len(candidates)], device=positives.device)
    if ((positives < 0) | (positives >= limits)).any():
        raise ValueError(f"positives name rows outside of {len(queries)} queries and {len(candidates)} candidates")


def _check_every_query_has_one(positives: Tensor, num_queries: int, query_name: str) -> None:
    """UserError for a query without a positive."""
    count = torch.bincount(positives[:, 0], minlength=num_queries)
    without = (count == 0).nonzero().squeeze(1)
    if len(without):
        raise UserError(
            f"{len(without)} of {num_queries} {query_name} have no positive (first: row {int(without[0])}): "
            f"a rank needs one for each, so pair them or leave them out"
        )
