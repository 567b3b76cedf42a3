"""``python -m mmlm.bench retrieval``: ranks by counting against ranks by a sort, as a Markdown table.

Both multiply the same embeddings in float32, so many queries at a time; what differs is how the rank of the right
candidate is found. Every measurement is a process of its own. Products alone are measured too, since no way to
rank is faster.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmlm.bench.cells import check_out
from mmlm.bench.process import Work, measure
from mmlm.bench.settings import RetrievalSettings
from mmlm.core.errors import UserError
from mmlm.evaluation.ranks import SCORES_AT_ONCE, best_positive_ranks

MIB = 2**20


def measure_retrieval(settings: RetrievalSettings, argv: Sequence[str]) -> int:
    """Measures and prints the table; returns the exit status. The page names ``argv`` as its command."""
    for key, values in {"sizes": settings.sizes, "width": [settings.width]}.items():
        if not values or min(values) < 1:
            raise UserError(f"{key}: {getattr(settings, key)} must be at least 1")
    check_out(settings.out)
    text = "\n".join(_document(settings, argv))
    print(text)
    if settings.out is not None:
        Path(settings.out).write_text(text + "\n", encoding="utf-8")
    return 0


def _document(settings: RetrievalSettings, argv: Sequence[str]) -> Iterator[str]:
    """The lines of the whole text."""
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'retrieval', *argv])}`"
    yield ""
    yield (
        f"PyTorch {torch.__version__}, float32, embeddings of {settings.width}, one direction. Processor seconds, and "
        "the peak of resident memory above the embeddings. The ratio without products is that of the ranking alone."
    )
    yield ""
    yield "| N | products, s | by a sort, s | counted, s | sort : counted | without products | counted, MiB |"
    yield "|--:|--:|--:|--:|--:|--:|--:|"
    for size in settings.sizes:
        print(f"N = {size:,}", file=sys.stderr, flush=True)
        products, sorted_, counted = (
            measure(f"mmlm.bench.retrieval:{way}", [str(size), str(settings.width)])
            for way in ("products", "by_sorting", "by_counting")
        )
        alone = (sorted_.seconds - products.seconds) / max(counted.seconds - products.seconds, 1e-9)
        yield (
            f"| {size:,} | {products.seconds:.2f} | {sorted_.seconds:.2f} | {counted.seconds:.2f} "
            f"| {sorted_.seconds / counted.seconds:.1f} | {alone:.0f} | {counted.peak_bytes / MIB:.0f} |"
        )


def _embeddings(size: str, width: str) -> tuple[Tensor, Tensor]:
    """Images and captions, float32[N, E] each."""
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(2, int(size), int(width), generator=generator).unbind()
    return images, captions


def products(size: str, width: str) -> Work:
    """All scores, some queries at a time, and nothing else."""
    images, captions = _embeddings(size, width)

    def work() -> None:
        for some in images.split(max(1, SCORES_AT_ONCE // len(captions))):
            some @ captions.T

    return work


def by_counting(size: str, width: str) -> Work:
    """The ranks as evaluations have them."""
    images, captions = _embeddings(size, width)
    pairs = torch.arange(len(images))[:, None].expand(-1, 2).contiguous()
    return lambda: best_positive_ranks(images, captions, pairs)


def by_sorting(size: str, width: str) -> Work:
    """The place of the right candidate among all, in order of their scores."""
    images, captions = _embeddings(size, width)

    def work() -> Tensor:
        found = []
        at_once = max(1, SCORES_AT_ONCE // len(captions))
        for start in range(0, len(images), at_once):
            order = (images[start : start + at_once] @ captions.T).argsort(dim=1, descending=True)
            own = torch.arange(start, start + len(order))[:, None]
            found.append(1 + (order == own).int().argmax(dim=1))
        return torch.cat(found)

    return work
