"""Ranks of the right candidates of every query, by counting: nothing is sorted, and no queries x candidates is held.

The rank of a query is one more than the number of candidates that are *not* its positives and score at least as high
as its best positive. Ties are pessimistic (a wrong candidate of equal score comes first), so that a model whose
embeddings have collapsed gets 0 rather than what chance or an order of storage would give.

Scores are float32 whatever autocast or the process's matmul precision say, since bf16 and TF32 scores change R@1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.computing import exact_float32
from mmlm.core.distributed import gather_results, rank, world_size
from mmlm.core.errors import UserError

SCORES_AT_ONCE = 2**22
"""Scores that are held at a time, 16 MB of float32, and a byte each for a comparison. More take longer on a CPU."""
_FEW_POSITIVES = 8
"""So many positives of a query are counted against one after another; more of them by a search for each score."""
_WORDS_A_SUM = 255
"""So many words of eight bytes, each byte 0 or 1, are added before a byte could overflow."""


@dataclass(frozen=True)
class Ranked:
    """Where the positives of each query stand among the candidates. On the CPU."""

    best: Tensor
    """int64[Q]: the rank of its best positive, 1 being the best."""
    average_precision: Tensor
    """float64[Q]: over its positives, the mean of i / place of the i-th of them; wrong ones of equal score first."""


def best_positive_ranks(
    queries: Tensor, candidates: Tensor, positives: Tensor, chunk_size: int | None = None, query_name: str = "queries"
) -> Tensor:
    """int64[Q]: ``rank_positives(...).best``."""
    return rank_positives(queries, candidates, positives, chunk_size, query_name).best


@torch.no_grad()
def rank_positives(
    queries: Tensor, candidates: Tensor, positives: Tensor, chunk_size: int | None = None, query_name: str = "queries"
) -> Ranked:
    """Ranks the positives of each query among the candidates, ties pessimistic.

    ``queries`` float[Q, E], ``candidates`` float[K, E], ``positives`` int64[P, 2] of (query row, candidate row);
    repeated pairs count once. ``chunk_size`` queries are scored at a time; by default as many as ``SCORES_AT_ONCE``
    allows. Where there are several chunks, ranks share them: then all ranks have to call this alike.

    Raises UserError if a query (``query_name`` in the message) has no positive, ValueError for embeddings that are
    not finite (every comparison with NaN is false, which would read as a perfect rank) or shapes that do not match.
    """
    chunk_size = max(1, SCORES_AT_ONCE // max(1, len(candidates))) if chunk_size is None else chunk_size
    _check(queries, candidates, positives, chunk_size)
    positives = torch.unique(positives.to(queries.device), dim=0)  # sorted by query
    _check_every_query_has_one(positives, len(queries), query_name)
    starts = torch.arange(0, len(queries), chunk_size, device=queries.device)
    bounds = [*torch.searchsorted(positives[:, 0].contiguous(), starts).tolist(), len(positives)]
    candidates = candidates.float()

    def of_chunk(number: int) -> tuple[Tensor, Tensor]:
        start = number * chunk_size
        rows, columns = positives[bounds[number] : bounds[number + 1]].unbind(1)
        part = queries[start : start + chunk_size].float()
        best, precision = _rank_chunk(part, candidates, rows - start, columns)
        return best.cpu(), precision.cpu()

    numbers = range(len(starts))
    if world_size() == 1 or len(numbers) == 1:
        found = {number: of_chunk(number) for number in numbers}
    else:
        # The same chunks as one process has, so that the products are the same to the last bit.
        parts = gather_results(lambda: {number: of_chunk(number) for number in numbers[rank() :: world_size()]})
        found = {number: result for part in parts for number, result in part.items()}
    best, precision = zip(*(found[number] for number in numbers), strict=True)
    return Ranked(torch.cat(best), torch.cat(precision))


def _rank_chunk(queries: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """(int64[Q] best ranks, float64[Q] average precisions) of float32[Q, E] queries.

    (rows, columns) int64[P] are their distinct positives, one or more each, sorted by row.
    """
    with exact_float32(queries.device):
        scores = queries @ candidates.T
    count = torch.bincount(rows, minlength=len(queries))
    most = int(count.max())
    # The scores of each query's positives, from the highest on; -inf where a query has fewer than others.
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    of_positives = scores.new_full((len(queries), most), -torch.inf)
    of_positives[rows, place] = scores[rows, columns]
    of_positives = of_positives.sort(dim=1, descending=True).values
    # How many score at least as high as each of them, of all candidates and of the positives.
    at_least_as_high = _count_at_least(scores, of_positives)
    falling = (-of_positives).contiguous()
    positive_so_high = torch.searchsorted(falling, falling, right=True)
    wrong_before = at_least_as_high - positive_so_high
    ordinal = torch.arange(1, most + 1, device=rows.device)
    precision = ordinal / (wrong_before + ordinal).double()
    there = ordinal <= count[:, None]
    return 1 + wrong_before[:, 0], torch.where(there, precision, 0.0).sum(dim=1) / count


def _count_at_least(scores: Tensor, limits: Tensor) -> Tensor:
    """int64[Q, m]: how many of a row of scores [Q, K] reach each of its limits [Q, m], which fall."""
    if limits.shape[1] <= _FEW_POSITIVES:
        reached = _room_for_words(scores)
        counts = []
        for limit in limits.unbind(dim=1):
            torch.ge(scores, limit[:, None], out=reached[:, : scores.shape[1]])
            counts.append(_count_true(reached))
        return torch.stack(counts, dim=1)
    # Rising limits; a score that reaches j of them reaches the lowest j.
    rising = limits.flip(1).contiguous()
    by_row = []
    for row, of_row in zip(scores, rising, strict=True):
        passed = torch.bincount(torch.searchsorted(of_row, row, right=True), minlength=limits.shape[1] + 1)
        by_row.append(passed.flip(0).cumsum(0)[:-1])
    return torch.stack(by_row)


def _room_for_words(scores: Tensor) -> Tensor:
    """Room for a comparison of scores [Q, K]: bool[Q, K'], all false, with K' the next multiple of eight."""
    return scores.new_zeros((len(scores), -(-scores.shape[1] // 8) * 8), dtype=torch.bool)


def _count_true(values: Tensor) -> Tensor:
    """int64[Q]: how many of a row of bool[Q, K] are true; K a multiple of 8.

    Eight values, a byte each, are added as one word of 64 bits. No byte passes into the next: it is at most 1 in each
    of 255 words. A sum over the bytes would first copy each of them to a number of four, which took as long as the
    comparison itself and a third more.
    """
    words = values.view(torch.int64)
    sums = torch.stack([some.sum(dim=1) for some in words.split(_WORDS_A_SUM, dim=1)], dim=1)
    return sums.view(torch.uint8).sum(dim=1)


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
