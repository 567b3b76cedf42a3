"""Several objectives as one loss, and what a micro-batch has to know of the whole batch."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.core.flow import (
    CAPTION,
    Batch,
    Loss,
    ModelOutput,
    ModelSizes,
    Pairs,
    StepKey,
    Term,
    TextPattern,
    TextView,
    View,
    ViewInputs,
)
from mmlm.core.keyed_start import keyed_start
from mmlm.objectives.objective import Comparison, FusionObjective, Objective
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.weights import Weight, WeightSchedule


@dataclass(frozen=True)
class CachedGradients:
    """A term of a comparison whose gradients with respect to the embeddings are known already."""

    term: Term
    """Value and count; the value is all in the first micro-batch, and 0 in the others."""
    image_gradient: Tensor
    """float32[B, E]: of ``local_sum`` with respect to the image embeddings of this micro-batch."""
    text_gradient: Tensor
    """float32[C, E]."""
    parameter_gradients: Mapping[str, Tensor]
    """With respect to the objective's own parameters; all in the first micro-batch, and 0 in the others, which data
    parallelism waits for there too."""

    def inject(self, output: ModelOutput, objective: nn.Module) -> Term:
        """The term with a graph: its gradients are the known ones, carried on into what made the embeddings."""
        carrier = (output.image_embedding * self.image_gradient).sum()
        carrier = carrier + (output.text_embedding * self.text_gradient).sum()
        for name, parameter in objective.named_parameters():
            if name in self.parameter_gradients:
                carrier = carrier + (parameter * self.parameter_gradients[name]).sum()
        local_sum = carrier + (self.term.local_sum - carrier).detach()
        return Term(local_sum, self.term.global_count, self.term.weight)

    def for_micro_batch(self, number: int, images: Sequence[int], texts: Sequence[int]) -> "CachedGradients":
        """That of micro-batch ``number``, of so many ``images`` and ``texts`` each; this is that of all of them."""
        return CachedGradients(
            _only_first(number, self.term),
            self.image_gradient.split(images)[number],
            self.text_gradient.split(texts)[number],
            {name: gradient * (number == 0) for name, gradient in self.parameter_gradients.items()},
        )


def _only_first(number: int, term: Term) -> Term:
    """The term in micro-batch 0, nothing in the others: so they add up to it."""
    return replace(term, local_sum=torch.zeros_like(term.local_sum)) if number else term


def _differentiated(term: Term, image: Tensor, text: Tensor, objective: nn.Module) -> CachedGradients:
    """The gradients of a term of a comparison of these embeddings."""
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    inputs = [image, text, *parameters.values()]
    gradients = torch.autograd.grad(term.local_sum, inputs, retain_graph=True, materialize_grads=True)
    return CachedGradients(term.detached(), *gradients[:2], dict(zip(parameters, gradients[2:], strict=True)))


@dataclass(frozen=True)
class BatchTotals:
    """What one micro-batch has to know of the whole batch."""

    counts: Mapping[str, Mapping[str, Tensor]]
    """float[] of the whole batch, by objective and by the objective's own names."""
    pairs: Pairs | None = None
    """Pairs to be fused from this micro-batch's images; None if they have not been chosen yet, or none are needed."""
    cached_gradients: Mapping[str, Mapping[str, CachedGradients]] = field(default_factory=dict)
    """Of comparisons, by objective and term, if the rank has several micro-batches."""
    figures: Mapping[str, Mapping[str, Term]] = field(default_factory=dict)
    """Likewise of their figures."""


class WeightedSum(nn.Module):
    """Several objectives: ``total = sum_i weights[i] * loss_i``. Terms carry their objective's name.

    A weight is a number or a schedule over the steps (``mmlm.objectives.weights``). An objective of weight 0 is left
    out altogether; one whose weight is 0 at some step is not computed in it.

    Raises:
        UserError: a weight without objective or the other way round, a negative or infinite weight, none positive, two
            objectives that choose pairs, or two that draw for one text view.
    """

    def __init__(self, objectives: Mapping[str, nn.Module], weights: Mapping[str, Weight]) -> None:
        super().__init__()
        if objectives.keys() != weights.keys():
            odd = ", ".join(sorted(objectives.keys() ^ weights.keys()))
            raise UserError(f"objective.weights: {odd} must be named in both objectives and weights")
        for name, weight in weights.items():
            if not isinstance(weight, WeightSchedule) and not 0 <= weight < math.inf:
                raise UserError(f"objective.weights.{name}: {weight} is no weight; use 0 to leave the objective out")
        self.weights = {name: weight for name, weight in weights.items() if weight != 0}
        if not self.weights:
            raise UserError("objective.weights: every weight is 0, so there is nothing to train; make one positive")
        self.objectives = nn.ModuleDict({name: objectives[name] for name in self.weights})
        fusions = [name for name, part in self.objectives.items() if isinstance(part, FusionObjective)]
        if len(fusions) > 1:
            raise UserError(f"objective.objectives: {' and '.join(fusions)} both choose pairs; take one of them")
        for view in {view for part in self.objectives.values() for view in part.views if isinstance(view, TextView)}:
            drawing = [name for name, part in self.objectives.items() if view in part.views and view != CAPTION]
            if len(drawing) > 1:
                both = " and ".join(drawing)
                raise UserError(f"objective.objectives: {both} both draw how captions are read; take one of them")
        self.views = frozenset().union(*(part.views for part in self.objectives.values()))
        self.needs_teacher = any(part.needs_teacher for part in self.objectives.values())
        self.pairs_per_image = sum(self.objectives[name].pairs_per_image for name in fusions)

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``."""
        for name, part in self.objectives.items():
            with keyed_start(f"objectives.{name}"):
                part.connect(sizes)

    def weights_at(self, step: int) -> dict[str, float]:
        """The weight of each objective that has one above 0 at an optimizer step."""
        given = self.weights.items()
        weights = {name: weight(step) if isinstance(weight, WeightSchedule) else weight for name, weight in given}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def active(self, step: int) -> dict[str, Objective]:
        """The objectives that are computed at an optimizer step."""
        return {name: self.objectives[name] for name in self.weights_at(step)}

    def views_at(self, step: int) -> frozenset[View]:
        """What the model has to run at an optimizer step."""
        return frozenset().union(*(part.views for part in self.active(step).values()))

    def teacher_views_at(self, step: int, known: Collection[str] = ()) -> frozenset[View]:
        """What the teacher has to run at an optimizer step, for all objectives but ``known``; it may be nothing."""
        return frozenset().union(*(part.teacher_views for name, part in self.active(step).items() if name not in known))

    def project(self, output: ModelOutput, step: int) -> ModelOutput:
        """See ``Objective``; by every objective of an optimizer step."""
        for part in self.active(step).values():
            output = part.project(output)
        return output

    def finish(self, step: int) -> None:
        """See ``Objective``; of every objective of an optimizer step."""
        for part in self.active(step).values():
            part.finish()

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """What is random about the views of an optimizer step."""
        drawn: dict[View, TextPattern | Tensor] = {}
        for part in self.active(step_key.step).values():
            drawn |= part.draw(batch, step_key)
        return drawn

    def comparisons(self, step: int) -> dict[str, Comparison]:
        """Those that compare across the whole batch."""
        return {name: part for name, part in self.active(step).items() if isinstance(part, Comparison)}

    def fusion(self, step: int) -> FusionObjective | None:
        """The one that chooses pairs, if there is one."""
        return next((part for part in self.active(step).values() if isinstance(part, FusionObjective)), None)

    def needs_two_passes(self, step: int) -> bool:
        """Whether several micro-batches have to be embedded before the first of them is differentiated."""
        return bool(self.comparisons(step)) or self.fusion(step) is not None

    def compare(
        self, image: Tensor, text: Tensor, batches: Sequence[Batch], step: int, teacher: ModelOutput | None = None
    ) -> tuple[BatchTotals, ...]:
        """All comparisons, differentiated: what each micro-batch has to know of them (and no counts).

        ``image`` float32[B, E] and ``text`` float32[C, E] are this rank's embeddings, in the order of ``batches``;
        ``teacher`` has those of the teacher.
        """
        keys = Keys.of(*batches)
        images, texts = [len(batch.image_concept) for batch in batches], [len(batch.lengths) for batch in batches]
        cached_gradients: list[dict[str, dict[str, CachedGradients]]] = [{} for _ in batches]
        figures: list[dict[str, dict[str, Term]]] = [{} for _ in batches]
        for name, part in self.comparisons(step).items():
            with torch.enable_grad():
                image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
                loss = part.compare_with_teacher(ModelOutput(image, text, teacher=teacher), keys)
            found = {key: _differentiated(term, image, text, part) for key, term in loss.terms.items()}
            for i, (cached, figure) in enumerate(zip(cached_gradients, figures, strict=True)):
                cached[name] = {key: one.for_micro_batch(i, images, texts) for key, one in found.items()}
                figure[name] = {key: _only_first(i, one.detached()) for key, one in loss.figures.items()}
        return tuple(BatchTotals({}, None, *both) for both in zip(cached_gradients, figures, strict=True))

    def count(self, batches: Sequence[Batch], step_key: StepKey) -> BatchTotals:
        """Items of all micro-batches and ranks, in one reduction."""
        parts = self.active(step_key.step)
        local = [{name: part.counts(batch, step_key) for name, part in parts.items()} for batch in batches]
        keys = [(name, key) for name, counts in local[0].items() for key in counts]
        if not keys:
            return BatchTotals({name: {} for name in parts})
        sums = [torch.stack([counts[name][key].double() for counts in local]).sum() for name, key in keys]
        totals = sum_over_ranks(torch.stack(sums)).clamp(min=1)
        found: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
        for (name, key), total in zip(keys, totals, strict=True):
            found[name][key] = total
        return BatchTotals(found)

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, totals: BatchTotals) -> Loss:
        """Every objective's terms, weighted, and its figures."""
        terms, figures = {}, {}
        weights = self.weights_at(step_key.step)
        for name, objective in self.active(step_key.step).items():
            if name in totals.cached_gradients:
                carried = {key: one.inject(output, objective) for key, one in totals.cached_gradients[name].items()}
                loss = Loss(carried, totals.figures[name])
            else:
                loss = objective(output, batch, step_key, totals.counts[name])
            for key, term in loss.terms.items():
                label = name if len(loss.terms) == 1 else f"{name}/{key}"
                terms[label] = replace(term, weight=term.weight * weights[name])
            figures |= {f"{name}/{key}": figure.detached() for key, figure in loss.figures.items()}
        return Loss(terms, figures)
