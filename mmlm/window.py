"""What training tells in one row of metrics: means over the steps since the last row, over all ranks."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmlm.distributed import sum_over_ranks
from mmlm.flow import Loss, Term

_LARGEST_LOG = 700.0
"""``exp`` of more is no float."""


@dataclass
class Means:
    """Means by name."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float) -> None:
        """One more value of ``name``; a tensor float[] stays where it is, so that no device is waited for."""
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


@dataclass(frozen=True)
class Row:
    """Values by name."""

    main: Mapping[str, float]
    """What whoever watches wants to see: the loss, its terms unweighted, the figures of objectives, gradient norm."""
    more: Mapping[str, float]
    """What follows from those, and what only some steps have."""


@dataclass
class Window:
    """What was seen since the last row of metrics.

    A rank's losses are its shares of those of the whole batch: they are summed over ranks when the row is made.
    """

    shares: Means = field(default_factory=Means)
    norms: Means = field(default_factory=Means)
    figures: Means = field(default_factory=Means)
    terms: dict[str, Term] = field(default_factory=dict)
    """The newest of each name."""
    not_one: set[str] = field(default_factory=set)
    """Terms whose weight was not 1 at some step."""
    steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, loss: Loss, norm: Tensor) -> None:
        """A step's loss (this rank's share, without gradient) and the norm of its gradients (of all ranks)."""
        self.steps += 1
        self.shares.add("loss", loss.total)
        for name, term in loss.terms.items():
            self.shares.add(name, term.value)
            self.shares.add(f"{name}/weighted", term.weighted)
            self.terms[name] = term
            if term.weight != 1:
                self.not_one.add(name)
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
        for name, term in self.terms.items():
            weighted = means.pop(f"{name}/weighted")
            if name in self.not_one:
                more[f"{name}/weighted"] = weighted
            if term.of_tokens:
                # Of the mean loss: the mean of exp would be larger.
                more[f"{name}/perplexity"] = math.exp(min(means[name], _LARGEST_LOG))
        return Row(means | self.norms.values(), more | self.figures.values())
