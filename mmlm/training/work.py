"""What steps were made of and what they took: sums over steps and ranks, of which a row of metrics tells the shares."""

import resource
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from mmlm.core.batch import Batch
from mmlm.core.distributed import gather_objects
from mmlm.core.figure import Figure, FigureGroup
from mmlm.model.text_places import TextPlaces

CountPlaces = Callable[[Sequence[Batch], int], TextPlaces]
"""Called with the micro-batches of this rank, on the CPU, and the optimizer step."""

SPEED = FigureGroup("Speed and data", "What a step was made of and what it took, since the row before.")
BY_SOURCE = "examples_from"


def _chart(name: str, meaning: str, share: bool = False, better: bool | None = None) -> Figure:
    return Figure(name, meaning, SPEED, share=share, higher_is_better=better, shown=("chart",))


FIGURES = {
    "tokens_per_second": _chart(
        "tokens a second", "of all captions, start and end included, on all ranks", better=True
    ),
    "tflops_per_second": _chart(
        "10^12 FLOPs a second",
        "on all ranks, forward and backward, without what is computed again; passes over other pixels or texts than "
        "the batch's do not count",
        better=True,
    ),
    "mfu": _chart("model FLOPs utilisation", "share of the FLOPs that the devices can reach", True, better=True),
    "data_wait": _chart("waiting for data", "share of the time of training, over all ranks", True, better=False),
    "padding": _chart(
        "padding", "share of the places that the model computes for text tokens and that hold none", True, better=False
    ),
    "cut_captions": _chart("captions cut", "share of the captions that are longer than data.max_tokens", True),
    "cut_tokens": _chart("tokens cut", "of a caption that was cut, on average; 0 if none was"),
    "peak_memory": _chart("peak memory (GB)", "the most of any rank: of the device, or on a CPU of the process"),
    BY_SOURCE: Figure("examples by source", "of a mixture", SPEED, shown=("chart",), family=True, noiseless=True),
}
"""What the names of ``values_over_ranks`` are."""

OF_THE_CLOCK = frozenset({"tokens_per_second", "tflops_per_second", "mfu", "data_wait", "peak_memory"})
"""Those that no two runs have alike."""


@dataclass(frozen=True)
class Work:
    """Sums over some steps, of one rank or of all."""

    images: int = 0
    captions: int = 0
    tokens: int = 0
    """Of the captions, start and end included."""
    filled: int = 0
    """Places that hold a token, over all passes of the model; see ``TextPlaces``."""
    computed: int = 0
    """All places that are computed for text tokens."""
    cut_captions: int = 0
    cut_tokens: int = 0
    waited: float = 0.0
    """Seconds without data."""
    by_source: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Sequence[Batch], places: TextPlaces) -> "Work":
        """That of one step's micro-batches, which are on the CPU."""
        tallies = [batch.tally for batch in batches]
        return cls(
            images=sum(len(batch.images) for batch in batches),
            captions=sum(len(batch.lengths) for batch in batches),
            tokens=sum(int(batch.lengths.sum()) for batch in batches),
            filled=places.tokens,
            computed=places.computed,
            cut_captions=sum(tally.cut_captions for tally in tallies),
            cut_tokens=sum(tally.cut_tokens for tally in tallies),
            by_source=dict(sum((Counter(tally.by_source) for tally in tallies), Counter())),
        )

    def __add__(self, other: "Work") -> "Work":
        numbers = [one.name for one in fields(self) if one.name != "by_source"]
        summed = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return Work(**summed, by_source=dict(Counter(self.by_source) + Counter(other.by_source)))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    @classmethod
    def restored(cls, states: Sequence[Mapping[str, Any]]) -> "Work":
        """The sum of what ``state_dict`` returned."""
        return sum((cls(**state) for state in states), cls())


@dataclass(frozen=True)
class Spent:
    """What the ranks did since the last row, and how long it took."""

    work: Work
    """Of all ranks."""
    seconds: float
    """Of training, the mean of the ranks'."""
    ranks: int
    peak_memory: float
    """Bytes; the most of any rank."""

    @classmethod
    def over_ranks(cls, work: Work, seconds: float, device: torch.device) -> "Spent":
        """From what each rank did. All ranks call it."""
        everyone = gather_objects((work, seconds, peak_memory(device)))
        works, times, peaks = zip(*everyone, strict=True)
        return cls(sum(works, Work()), max(1e-9, sum(times) / len(times)), len(everyone), max(peaks))

    def values(self) -> dict[str, float]:
        """The figures that need no knowledge of the model's FLOPs."""
        work = self.work
        return {
            "tokens_per_second": work.tokens / self.seconds,
            "data_wait": work.waited / (self.ranks * self.seconds),
            "padding": 1 - work.filled / max(1, work.computed) if work.computed else 0.0,
            "cut_captions": work.cut_captions / max(1, work.captions),
            "cut_tokens": work.cut_tokens / max(1, work.cut_captions),
            "peak_memory": self.peak_memory / 1e9,
            **{f"{BY_SOURCE}/{name}": count for name, count in sorted(work.by_source.items())},
        }


def peak_memory(device: torch.device) -> float:
    """Bytes that were in use at most since the process began: of the device's memory, or on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
