"""Several objectives as one loss, exact over micro-batches.

A comparison needs the embeddings of the whole batch at once, which do not fit into memory with their graphs. Its
gradients are made as in GradCache (arXiv:2101.06983), in two passes: the first embeds all micro-batches without a graph
and differentiates the comparison with respect to the embeddings (``WeightedSum.compare``); the second runs each
micro-batch with its graph and backpropagates its slice of those gradients (``CachedGradients.inject``).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import LOSS, Figure, loss_term
from mmlm.core.keyed_start import keyed_start
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes, Pairs
from mmlm.core.views import CAPTION, StepKey, TextPattern, TextView, View, ViewInputs
from mmlm.objectives.gradient_path import check_comparison, check_some_gradient
from mmlm.objectives.objective import Comparison, FusionObjective, Objective, required
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.weights import Weight, WeightSchedule


@dataclass(frozen=True)
class CachedGradients:
    """GradCache: a term of a comparison with its gradients with respect to the embeddings.

    Made once for all micro-batches of a rank; each micro-batch backpropagates its slice.
    """

    term: Term
    """Value and count, without gradient. Micro-batch 0 has the whole value, the others 0, so that they add up to it."""
    image_gradient: Tensor
    """float32[B, E]: gradient of ``term.local_sum`` with respect to the image embeddings."""
    text_gradient: Tensor
    """float32[C, E]: gradient with respect to the text embeddings."""
    parameter_gradients: Mapping[str, Tensor]
    """Gradients with respect to the objective's own parameters, by name. Micro-batch 0 has all of them, the others
    zeros: data parallelism waits for a gradient of every parameter in every backward pass."""

    def inject(self, output: ModelOutput, objective: nn.Module) -> Term:
        """The term with a graph: its value is the cached one, and its backward pass feeds the cached gradients into the
        embeddings of ``output`` and the parameters of ``objective``."""
        # d/dx of sum(x * g) is g: whatever x is now, backward hands on the cached gradient.
        carrier = (required(output.image_embedding, "image_embedding") * self.image_gradient).sum()
        carrier = carrier + (required(output.text_embedding, "text_embedding") * self.text_gradient).sum()
        for name, parameter in objective.named_parameters():
            if name in self.parameter_gradients:
                carrier = carrier + (parameter * self.parameter_gradients[name]).sum()
        # The carrier's own value is meaningless: swap it for the term's without touching the gradient.
        local_sum = carrier + (self.term.local_sum - carrier).detach()
        return Term(local_sum, self.term.global_count, self.term.weight)

    def for_micro_batch(self, number: int, images: Sequence[int], texts: Sequence[int]) -> "CachedGradients":
        """The slice for micro-batch ``number``; micro-batch i has ``images[i]`` images and ``texts[i]`` texts."""
        return CachedGradients(
            _only_first(number, self.term),
            self.image_gradient.split(images)[number],
            self.text_gradient.split(texts)[number],
            {name: gradient * (number == 0) for name, gradient in self.parameter_gradients.items()},
        )


def _only_first(number: int, term: Term) -> Term:
    """The term for micro-batch 0 and a sum of 0 for the others, so that all of them add up to the term."""
    return replace(term, local_sum=torch.zeros_like(term.local_sum)) if number else term


def _differentiated(term: Term, image: Tensor, text: Tensor, objective: nn.Module) -> CachedGradients:
    """``term`` with its gradients with respect to the embeddings and the trainable parameters of ``objective``."""
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    inputs = [image, text, *parameters.values()]
    # The graph is kept: the terms of one comparison share it, and each is differentiated by itself.
    of_image, of_text, *others = torch.autograd.grad(term.local_sum, inputs, retain_graph=True, materialize_grads=True)
    return CachedGradients(term.detached(), of_image, of_text, dict(zip(parameters, others, strict=True)))


@dataclass(frozen=True)
class BatchTotals:
    """The facts about the whole batch that one micro-batch needs for its loss."""

    counts: Mapping[str, Mapping[str, Tensor]]
    """float[]: item counts of the whole batch, by objective and by the objective's own names."""
    pairs: Pairs | None = None
    """The image-text pairs of this micro-batch; None if no objective needs pairs, or before they are chosen."""
    cached_gradients: Mapping[str, Mapping[str, CachedGradients]] = field(default_factory=dict)
    """Terms of the comparisons, by objective and term; empty if the rank has one micro-batch only."""
    figures: Mapping[str, Mapping[str, Term]] = field(default_factory=dict)
    """Figures of the comparisons without gradient, by objective and name; empty as above."""


class WeightedSum(nn.Module):
    """Several objectives: ``total = sum_i weights[i] * loss_i``. A term is named after its objective.

    A weight is a number or a schedule over the steps (``mmlm.objectives.weights``). An objective of weight 0 is left
    out altogether; one whose scheduled weight is 0 at a step is not computed at that step.

    Raises:
        UserError: a weight without its objective or an objective without its weight, a negative or infinite weight, no
            positive weight, two objectives that choose pairs, or two that draw for one text view.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, Weight]) -> None:
        super().__init__()
        if objectives.keys() != weights.keys():
            odd = ", ".join(sorted(objectives.keys() ^ weights.keys()))
            raise ArgumentError(f"weights: {odd} must be named in both objectives and weights")
        for name, weight in weights.items():
            if not isinstance(weight, WeightSchedule) and not 0 <= weight < math.inf:
                raise ArgumentError(f"weights.{name}: {weight} is no weight; use 0 to leave the objective out")
        self.weights = {name: weight for name, weight in weights.items() if weight != 0}
        if not self.weights:
            raise ArgumentError("weights: every weight is 0, so there is nothing to train; make one positive")
        self.objectives = nn.ModuleDict({name: objectives[name] for name in self.weights})
        parts = self.named_parts()
        fusions = {name: part for name, part in parts.items() if isinstance(part, FusionObjective)}
        if len(fusions) > 1:
            raise ArgumentError(f"objectives: {' and '.join(fusions)} both choose pairs; take one of them")
        # A text view runs once with one pattern: two objectives that draw one each would overwrite each other.
        for view in {view for part in parts.values() for view in part.views if isinstance(view, TextView)}:
            drawing = [name for name, part in parts.items() if view in part.views and view != CAPTION]
            if len(drawing) > 1:
                both = " and ".join(drawing)
                raise ArgumentError(f"objectives: {both} both draw how captions are read; take one of them")
        self.views: frozenset[View] = frozenset().union(*(part.views for part in parts.values()))
        self.needs_teacher = any(part.needs_teacher for part in parts.values())
        self.pairs_per_image = sum(part.pairs_per_image for part in fusions.values())

    def named_parts(self) -> dict[str, Objective]:
        """The objectives by name; ``ModuleDict`` knows them as modules only."""
        return {name: cast(Objective, part) for name, part in self.objectives.items()}

    @property
    def figures(self) -> dict[str, Figure]:
        """What the names of the terms and figures of a loss of ``forward`` are, as the objectives declare it."""
        found: dict[str, Figure] = {}
        for name, part in self.named_parts().items():
            terms = [key for key, figure in part.figures.items() if figure.group == LOSS]
            if not terms:
                found[name] = replace(loss_term(""), title=name)
            for key, figure in part.figures.items():
                own = figure.title or f"{name.replace('_', ' ')} {figure.name}"
                label, title = f"{name}/{key}", own
                if key in terms:
                    label = title = name if len(terms) == 1 else label
                found[label] = replace(figure.under(f"{name}/"), title=title)
        return found

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``. An argument that does not fit ``sizes`` is told by its key in the config."""
        for name, part in self.named_parts().items():
            try:
                with keyed_start(f"objectives.{name}"):
                    part.connect(sizes)
            except ArgumentError as error:
                raise UserError(f"objective.objectives.{name}.{error}") from None

    def weights_at(self, step: int) -> dict[str, float]:
        """The weights above 0 at an optimizer step, by objective."""
        given = self.weights.items()
        weights = {name: weight(step) if isinstance(weight, WeightSchedule) else weight for name, weight in given}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def active(self, step: int) -> dict[str, Objective]:
        """The objectives that are computed at an optimizer step: those of a weight above 0."""
        parts = self.named_parts()
        return {name: parts[name] for name in self.weights_at(step)}

    def views_at(self, step: int) -> frozenset[View]:
        """The passes that the model has to run at an optimizer step."""
        return frozenset().union(*(part.views for part in self.active(step).values()))

    def teacher_views_at(self, step: int, known: Collection[str] = ()) -> frozenset[View]:
        """The passes that the teacher has to run at an optimizer step, for all objectives but ``known``; maybe none."""
        return frozenset().union(*(part.teacher_views for name, part in self.active(step).items() if name not in known))

    def project(self, output: ModelOutput, step: int) -> ModelOutput:
        """See ``Objective``; every objective of the optimizer step adds its own projections."""
        for part in self.active(step).values():
            output = part.project(output)
        return output

    def finish(self, step: int) -> None:
        """See ``Objective``; called for every objective of the optimizer step."""
        for part in self.active(step).values():
            part.finish()

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """The random inputs of all views of an optimizer step, for one micro-batch."""
        drawn: dict[View, TextPattern | Tensor] = {}
        for part in self.active(step_key.step).values():
            drawn |= part.draw(batch, step_key)
        return drawn

    def comparisons(self, step: int) -> dict[str, Comparison]:
        """The objectives that compare across the whole batch, by name."""
        return {name: part for name, part in self.active(step).items() if isinstance(part, Comparison)}

    def fusion(self, step: int) -> FusionObjective | None:
        """The objective that chooses image-text pairs, if there is one."""
        return next((part for part in self.active(step).values() if isinstance(part, FusionObjective)), None)

    def needs_two_passes(self, step: int) -> bool:
        """True if all micro-batches have to be embedded before the backward pass of the first one."""
        return bool(self.comparisons(step)) or self.fusion(step) is not None

    def compare(
        self, image: Tensor, text: Tensor, batches: Sequence[Batch], step: int, teacher: ModelOutput | None = None
    ) -> tuple[BatchTotals, ...]:
        """The first pass of GradCache: differentiates all comparisons; returns each micro-batch's slice (no counts).

        ``image`` float32[B, E] and ``text`` float32[C, E] are the embeddings of all of this rank's micro-batches, in
        the order of ``batches``; ``teacher`` has the teacher's embeddings. Every rank has to call this at the same
        point.
        """
        keys = Keys.of(*batches)
        images, texts = [len(batch.image_concept) for batch in batches], [len(batch.lengths) for batch in batches]
        cached_gradients: list[dict[str, dict[str, CachedGradients]]] = [{} for _ in batches]
        figures: list[dict[str, dict[str, Term]]] = [{} for _ in batches]
        for name, part in self.comparisons(step).items():
            with torch.enable_grad():
                # New leaves: the graph of the comparison ends at the embeddings, which were made without a graph.
                image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
                given = ModelOutput(image, text, teacher=teacher)
                loss = part.compare_with_teacher(given, keys)
                check_comparison(name, part, given, loss)
            found = {key: _differentiated(term, image, text, part) for key, term in loss.terms.items()}
            for i, (cached, figure) in enumerate(zip(cached_gradients, figures, strict=True)):
                cached[name] = {key: one.for_micro_batch(i, images, texts) for key, one in found.items()}
                figure[name] = {key: _only_first(i, one.detached()) for key, one in loss.figures.items()}
        return tuple(BatchTotals({}, None, *both) for both in zip(cached_gradients, figures, strict=True))

    def count(self, batches: Sequence[Batch], step_key: StepKey) -> BatchTotals:
        """The item counts of all objectives over all micro-batches and ranks, by a single reduction."""
        parts = self.active(step_key.step)
        local = [{name: part.counts(batch, step_key) for name, part in parts.items()} for batch in batches]
        keys = [(name, key) for name, counts in local[0].items() for key in counts]
        if not keys:
            return BatchTotals({name: {} for name in parts})
        # float64 holds every count up to 2**53 exactly; at least 1 keeps an empty sum at 0 instead of 0 / 0.
        sums = [torch.stack([counts[name][key].double() for counts in local]).sum() for name, key in keys]
        totals = sum_over_ranks(torch.stack(sums)).clamp(min=1)
        found: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
        for (name, key), total in zip(keys, totals, strict=True):
            found[name][key] = total
        return BatchTotals(found)

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, totals: BatchTotals) -> Loss:
        """The terms of every objective, weighted, and its figures, for one micro-batch."""
        terms: dict[str, Term] = {}
        figures: dict[str, Term] = {}
        weights = self.weights_at(step_key.step)
        active = self.active(step_key.step)
        for name, objective in active.items():
            if name in totals.cached_gradients:
                carried = {key: one.inject(output, objective) for key, one in totals.cached_gradients[name].items()}
                loss = Loss(carried, totals.figures[name])
            else:
                loss = objective(output, batch, step_key, totals.counts[name])
                if isinstance(objective, Comparison):
                    check_comparison(name, objective, output, loss)
            for key, term in loss.terms.items():
                label = name if len(loss.terms) == 1 else f"{name}/{key}"
                terms[label] = replace(term, weight=term.weight * weights[name])
            figures |= {f"{name}/{key}": figure.detached() for key, figure in loss.figures.items()}
        check_some_gradient(active, output, terms.values())
        return Loss(terms, figures)
