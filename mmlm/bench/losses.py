"""``python -m mmlm.bench losses``: time and peak memory of the losses against open_clip's, as Markdown tables.

Every measurement is a process of its own, and the losses of mmlm and of open_clip take turns. Timings of a busy machine
mean little by themselves, so the tables give the ratio of the two.
"""

import importlib.util
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlm.bench import captioning_loss
from mmlm.bench.cells import check_out
from mmlm.bench.process import Measured, measure
from mmlm.bench.settings import LossesSettings
from mmlm.core.errors import UserError
from mmlm.experiment.device import choose_device
from mmlm.record.environment import device_name

MIB = 2**20


@dataclass(frozen=True)
class Rivals:
    """The two implementations of one loss: functions in the form that ``mmlm.bench.process.measure`` takes."""

    name: str
    """Name of the loss in the table."""
    ours: str
    theirs: str


@dataclass(frozen=True)
class Size:
    """One size at which both implementations are measured."""

    label: str
    arguments: Sequence[str]
    """The arguments of the functions."""


CONTRASTIVE = (
    Rivals("InfoNCE", "mmlm.bench.contrastive_loss:info_nce", "mmlm.bench.contrastive_loss:clip_loss"),
    Rivals("Sigmoid", "mmlm.bench.contrastive_loss:sigmoid", "mmlm.bench.contrastive_loss:siglip_loss"),
)
"""The contrastive losses, against open_clip's ClipLoss and SigLipLoss."""


def measure_losses(settings: LossesSettings, argv: Sequence[str]) -> int:
    """Measures and prints the tables; returns the exit status. The page names ``argv`` as its command."""
    _check(settings)
    text = "\n".join(_document(settings, argv))
    print(text)
    if settings.out is not None:
        Path(settings.out).write_text(text + "\n", encoding="utf-8")
    return 0


def _check(settings: LossesSettings) -> None:
    for key, values in {
        "batch_sizes": settings.batch_sizes,
        "width": [settings.width],
        "rounds": [settings.rounds],
    }.items():
        if not values or min(values) < 1:
            raise UserError(f"{key}: {getattr(settings, key)} must be at least 1")
    check_out(settings.out)
    if importlib.util.find_spec("open_clip") is None:
        raise UserError(
            "losses: open_clip is not installed, and it is what is compared with; pip install open_clip_torch"
        )


def _document(settings: LossesSettings, argv: Sequence[str]) -> Iterator[str]:
    """The lines of the whole text."""
    device = choose_device(settings.device)
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'losses', *argv])}`"
    yield ""
    yield (
        f"{device_name(device)}, PyTorch {torch.__version__}, float32. Forward and "
        f"backward, {_meaning(device)}, each in a process of its own; medians of {settings.rounds} that took turns. "
        "×: ours over theirs, measured right after each other."
    )
    sizes = [Size(f"{size:,}", (str(size), str(settings.width), device.type)) for size in settings.batch_sizes]
    yield from _table(f"Contrastive, embeddings of {settings.width}", "B", CONTRASTIVE, sizes, settings.rounds)
    if settings.captioning:
        print("captioning", file=sys.stderr, flush=True)
        yield from ("", f"### Captioning, {captioning_loss.SIZES}; once each", "", captioning_loss.table())


def _meaning(device: torch.device) -> str:
    if device.type == "cuda":
        return "seconds on the clock and the peak of what PyTorch had allocated above the inputs"
    return "processor seconds and the peak of resident memory above the inputs"


def _table(title: str, of: str, rivals: Sequence[Rivals], sizes: Sequence[Size], rounds: int) -> Iterator[str]:
    """The lines of one table: a row for each loss and size."""
    yield from ("", f"### {title}", "")
    yield f"| loss | {of} | seconds | open_clip | × | MiB | open_clip | × |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for pair in rivals:
        for size in sizes:
            print(f"{pair.name}, {of} = {size.label}", file=sys.stderr, flush=True)
            yield f"| {pair.name} | {size.label} | {' | '.join(_row(pair, size, rounds))} |"


def _row(pair: Rivals, size: Size, rounds: int) -> Iterator[str]:
    """The numbers of a row. If one implementation does not fit the memory, the other's numbers still stand there."""
    turns = [(_measured(pair.ours, size), _measured(pair.theirs, size)) for _ in range(rounds)]
    for key, digits, unit in (("seconds", 3, 1), ("peak_bytes", 0, MIB)):
        ours, theirs = ([getattr(m, key) / unit for m in side if m is not None] for side in zip(*turns, strict=True))
        yield from (_median(ours, digits), _median(theirs, digits))
        ratios = [getattr(a, key) / getattr(b, key) for a, b in turns if a is not None and b is not None]
        yield _median(ratios, 2)


def _measured(module_function: str, size: Size) -> Measured | None:
    """One measurement in a process of its own; None if the work does not fit the memory."""
    try:
        return measure(module_function, size.arguments)
    except MemoryError:
        return None


def _median(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f}" if values else "does not fit"
