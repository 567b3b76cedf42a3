"""What training tells in one row of metrics: means over the steps since the last row, over all ranks."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmlm.core.distributed import rank, sum_over_ranks
from mmlm.core.figure import LOSS, TOTAL, WEIGHTED, Figure
from mmlm.core.loss import Loss
from mmlm.training.work import Spent, Work

_LARGEST_LOG = 700.0
"""``exp`` of more is no float."""


def row_figures(of_objectives: Mapping[str, Figure]) -> dict[str, Figure]:
    """What the values of a row are, those of the objectives and those that are made of them here."""
    terms = [label for label, figure in of_objectives.items() if figure.group == LOSS]
    return {
        TOTAL: Figure(
            "total", "the weighted sum of all terms", LOSS, higher_is_better=False, shown=("chart", "console")
        ),
        **of_objectives,
        "gradient_norm": Figure("gradient norm", "before clipping", shown=("chart", "console")),
        # The report draws these by the name of their term.
        **{f"{label}/{WEIGHTED}": Figure(WEIGHTED, "the term times its weight", LOSS, shown=()) for label in terms},
        **{f"{label}/perplexity": _perplexity(label) for label in terms},
    }


def _perplexity(term: str) -> Figure:
    title = f"{term.replace('/', ' ').replace('_', ' ')} perplexity"
    meaning = "exp of the loss a token: among how many equally likely tokens it is as if to choose"
    return Figure("perplexity", meaning, title=title, higher_is_better=False, log_scale=True, shown=("chart",))


@dataclass
class Means:
    """Means by name."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float) -> None:
        """One more value of ``name``; a tensor float[] stays where it is, so that no device is waited for."""
        value = value.detach() if isinstance(value, Tensor) else value
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, float]:
        """Of what this process saw."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def over_ranks(self) -> dict[str, float]:
        """The sums of the means of all ranks, in one reduction; all have the same names in the same order."""
        if not self.sums:
            return {}
        sums = sum_over_ranks(torch.stack([torch.as_tensor(total).double() for total in self.sums.values()]))
        return {name: total / self.counts[name] for name, total in zip(self.sums, sums.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Sums on the CPU, in their own type."""
        sums = {name: total.cpu() if isinstance(total, Tensor) else total for name, total in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts)}

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> "Means":
        """From what ``state_dict`` returned."""
        sums = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in state["sums"].items()}
        return cls(sums, dict(state["counts"]))

    def plus(self, others: Sequence["Means"], factor: float) -> "Means":
        """``factor`` times the sums of this one and of ``others``, which have the same names and counts."""
        sums = {name: factor * sum((one.sums[name] for one in others), total) for name, total in self.sums.items()}
        return Means(sums, self.counts)


@dataclass(frozen=True)
class Row:
    """Values by name."""

    shown: Mapping[str, float]
    """What whoever watches wants to see: the loss, its terms unweighted, the figures of objectives, gradient norm."""
    hidden: Mapping[str, float]
    """What follows from those, and what only some steps have."""


@dataclass
class Window:
    """What was seen since the last row of metrics.

    A rank's losses are its shares of those of the whole batch: they are summed over ranks when the row is made. It is
    part of a checkpoint, so that the first row of a resumed run is about all of its steps.
    """

    shares: Means = field(default_factory=Means)
    norms: Means = field(default_factory=Means)
    figures: Means = field(default_factory=Means)
    of_tokens: set[str] = field(default_factory=set)
    """Terms that are per token, and so have a perplexity."""
    reweighted: set[str] = field(default_factory=set)
    """Terms whose weight was not 1 at some step."""
    terms: list[str] = field(default_factory=list)
    """All of them, in order of appearance."""
    steps: int = 0
    """Steps seen, those that were left out included."""
    work: Work = field(default_factory=Work)
    """Of this rank, those of left out steps included."""
    seconds: float = 0.0
    """Of before the run was stopped, if it was since the last row."""
    started: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Starts the clock: what happened between it was made or restored and now was no training."""
        self.started = time.monotonic() - self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock: what is done meanwhile is no training."""
        begun = time.monotonic()
        yield
        self.started += time.monotonic() - begun

    def add(self, loss: Loss, norm: Tensor) -> None:
        """A step's loss (this rank's share, without gradient) and the norm of its gradients (of all ranks)."""
        self.shares.add(TOTAL, loss.total)
        for name, term in loss.terms.items():
            self.shares.add(name, term.value)
            self.shares.add(f"{name}/{WEIGHTED}", term.weighted)
            if name not in self.terms:
                self.terms.append(name)
            if term.of_tokens:
                self.of_tokens.add(name)
            if term.weight != 1:
                self.reweighted.add(name)
        for name, figure in loss.figures.items():
            self.shares.add(name, figure.value)
        self.norms.add("gradient_norm", norm)
        if loss.diagnosis is not None:
            self.add_figures(loss.diagnosis.over_ranks().values())

    def add_figures(self, values: Mapping[str, float]) -> None:
        """Values of some step that are those of all ranks already."""
        for name, value in values.items():
            self.figures.add(name, value)

    def means(self) -> Row:
        """The row. A term's mean is over the steps that had it; so is that of a figure. All ranks take part."""
        means, more = self.shares.over_ranks(), {}
        for name in self.terms:
            weighted = means.pop(f"{name}/{WEIGHTED}")
            if name in self.reweighted:
                more[f"{name}/{WEIGHTED}"] = weighted
            if name in self.of_tokens:
                # Of the mean loss: the mean of exp would be larger.
                more[f"{name}/perplexity"] = math.exp(min(means[name], _LARGEST_LOG))
        return Row(means | self.norms.values(), more | self.figures.values())

    def spent(self, device: torch.device) -> Spent:
        """What all ranks did since the last row; all of them take part."""
        return Spent.over_ranks(self.work, time.monotonic() - self.started, device)

    def rate(self, batch_size: int) -> float:
        """Examples of all ranks a second of training, since the last row."""
        return self.steps * batch_size / max(1e-9, time.monotonic() - self.started)

    def state_dict(self) -> dict[str, Any]:
        """What this rank has to find again: plain numbers, strings and tensors."""
        return {
            "shares": self.shares.state_dict(),
            "norms": self.norms.state_dict(),
            "figures": self.figures.state_dict(),
            "of_tokens": sorted(self.of_tokens),
            "reweighted": sorted(self.reweighted),
            "terms": list(self.terms),
            "steps": self.steps,
            "work": self.work.state_dict(),
            "seconds": time.monotonic() - self.started,
        }

    @classmethod
    def restored(cls, states: Sequence[Mapping[str, Any]], ranks: int, device: torch.device) -> "Window":
        """This rank's, from the ``state_dict`` of every rank that there was.

        With another number of ``ranks`` now than there were, rank 0 gets the sum of all shares and the others 0.
        """
        same = len(states) == ranks
        mine = states[rank() if same else 0]
        shares = Means.restored(mine["shares"], device)
        if not same:
            others = [Means.restored(state["shares"], device) for state in states[1:]]
            shares = shares.plus(others, float(rank() == 0))
        # A checkpoint of an earlier version knows of no work.
        works = [state["work"] for state in ([mine] if same else states if rank() == 0 else []) if "work" in state]
        return cls(
            shares,
            Means.restored(mine["norms"], device),
            Means.restored(mine["figures"], device),
            set(mine["of_tokens"]),
            set(mine["reweighted"]),
            list(mine["terms"]),
            mine["steps"],
            Work.restored(works),
            mine["seconds"],
        )
