"""A loss as terms: sums over local items, each with the item count of the whole batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """A part of a loss, or a figure: a sum over the items of one micro-batch and the item count of the *whole* batch.

    The whole batch is that of every rank and micro-batch, so the terms' values add up to the value of the whole batch.
    """

    local_sum: Tensor
    """float32[]: with gradient if the term is part of a loss."""
    global_count: Tensor
    """float32[]: without gradient."""
    weight: float = 1.0
    """Factor of the term in the total loss."""
    of_tokens: bool = False
    """True for a negative log-likelihood of tokens: ``exp(value)`` of the whole batch is then a perplexity."""

    @property
    def value(self) -> Tensor:
        """float32[]: what these items add to the mean over the whole batch, without the weight."""
        return self.local_sum / self.global_count

    @property
    def weighted(self) -> Tensor:
        """float32[]: what these items add to the total loss."""
        return self.weight * self.value

    def detached(self) -> "Term":
        """The same term without gradient."""
        return replace(self, local_sum=self.local_sum.detach())


class Diagnosis(Protocol):
    """Sums that are made at some steps only, for the figures in ``mmlm/training/diagnosis.py``."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The sum over several micro-batches."""
        ...

    def over_ranks(self) -> Self:
        """The sum over all ranks, in one reduction."""
        ...

    def values(self) -> dict[str, float]:
        """The figures by name."""
        ...


@dataclass(frozen=True)
class Loss:
    """The terms and figures of one micro-batch or, after ``joined``, of all micro-batches of a rank.

    The backward pass starts at ``total``. Its gradients are *summed* over micro-batches and ranks, never averaged: each
    term is a local sum over a global count.
    """

    terms: Mapping[str, Term]
    figures: Mapping[str, Term] = field(default_factory=dict)
    """Values to watch, such as temperature and accuracy, by name; without gradient."""
    diagnosis: Diagnosis | None = None
    """Sums of the steps that are diagnosed; None at any other step."""

    @property
    def total(self) -> Tensor:
        """float32[]: the weighted sum of the terms."""
        return torch.stack([term.weighted for term in self.terms.values()]).sum()

    def by_objective(self) -> dict[str, Tensor]:
        """float32[] for each objective: its share of ``total``. A term is named ``objective`` or ``objective/part``."""
        totals: dict[str, Tensor] = {}
        for label, term in self.terms.items():
            name = label.partition("/")[0]
            totals[name] = term.weighted if name not in totals else totals[name] + term.weighted
        return totals

    @classmethod
    def joined(cls, losses: Sequence["Loss"]) -> "Loss":
        """The sum of the losses of all micro-batches of a rank, without gradient."""
        terms = {name: _joined([loss.terms[name] for loss in losses]) for name in losses[0].terms}
        figures = {name: _joined([loss.figures[name] for loss in losses]) for name in losses[0].figures}
        diagnosed = [loss.diagnosis for loss in losses if loss.diagnosis is not None]
        return cls(terms, figures, type(diagnosed[0]).joined(diagnosed) if diagnosed else None)


def _joined(terms: Sequence[Term]) -> Term:
    return replace(terms[0], local_sum=torch.stack([term.local_sum.detach() for term in terms]).sum())
