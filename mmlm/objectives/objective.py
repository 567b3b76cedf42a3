"""The contract of an objective, and of its two kinds that need the embeddings of the whole batch.

The loss of a step is that of the *whole* batch: all micro-batches of all ranks. An objective sees one micro-batch at a
time; a ``BatchTotals`` tells it what it has to know of the others (see ``mmlm/training/gradients.py``).
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.figure import Figure
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput, ModelSizes, Pairs
from mmlm.core.views import StepKey, View, ViewInputs
from mmlm.objectives.shared.keys import Keys

_Value = TypeVar("_Value")


def required(value: _Value | None, name: str) -> _Value:
    """The field ``name`` of a ``ModelOutput``, without None. RuntimeError if the model did not make it."""
    if value is None:
        raise RuntimeError(f"an objective needs the model's {name}, which no view made: this is a bug of mmlm")
    return value


class Objective(nn.Module):
    """A loss that is a sum over examples (or tokens, or patches) divided by how many there are.

    Subclasses count their items from the batch alone, before any forward pass, and return sums over the items of the
    micro-batch, each divided by the count of the whole batch.
    """

    views: frozenset[View] = frozenset()
    """The passes that the model has to run."""
    needs_teacher = False
    """True if ``forward`` reads ``ModelOutput.teacher``."""
    needs_average = False
    """True if the teacher has to be the moving average of the model and of this objective's own parameters."""
    figures: Mapping[str, Figure] = {}
    """What the names of its terms (``mmlm.core.figure.loss_term``) and figures are: where and how the report, the
    console and comparisons show them. A figure that is not declared is shown under its own name, and an objective that
    declares no term has one, of its own name."""

    @property
    def teacher_views(self) -> frozenset[View]:
        """The passes that the teacher has to run: those of the student, unless a subclass says otherwise."""
        return self.views if self.needs_teacher else frozenset()

    def connect(self, sizes: ModelSizes) -> None:
        """Called once, before training: makes the parts whose widths depend on the model.

        Raises UserError if the model lacks what the objective reads.
        """

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """The random inputs of its views for this micro-batch; drawn by ``step_key`` and example."""
        return {}

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """int64[] for each sum, by name: the number of items of this micro-batch."""
        return {}

    def project(self, output: ModelOutput) -> ModelOutput:
        """``output`` with ``projected`` filled in by the objective's heads; an averaged teacher has averaged heads."""
        return output

    def finish(self) -> None:
        """Called once a step on every rank, after the backward pass of the last micro-batch: updates running means.

        It may reduce over ranks: a rank with fewer micro-batches than another calls it exactly once too.
        """

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """The loss of a micro-batch; ``counts`` float[], at least 1 each, are those of the whole batch."""
        raise NotImplementedError


class Comparison(Objective):
    """A loss that compares images with texts across the whole batch and reads nothing but their embeddings.

    A subclass overrides ``compare`` and keeps these rules. Otherwise several ranks train something else than one, or
    wait for each other for ever.

    - **Counts.** Each term is a sum over this rank's items and the number of items of *all* ranks, at least 1
      (``sum_over_ranks``): then the values of all ranks add up to the loss of the whole batch. So do the figures.
      ``counts`` is not called.
    - **Collectives.** It gathers from the other ranks what it needs. Every rank calls the same collectives (``gather``,
      ``sum_over_ranks``, ``Candidates.of``) in the same order, whatever is in its share of the batch: no condition on
      the rank's own data may stand before one. The backward pass of ``gather`` is a collective too;
      ``sum_over_ranks`` has no gradient.
    - **An empty rank**, one without any image that has a caption, returns a zero *with a gradient path*: a 0 that is
      computed from ``image`` and ``text``, as a sum over no rows is (``image[:0].sum()``), and not ``torch.zeros(())``.
      The other ranks wait for its backward pass. Every term has this path, on every rank.
    - **Micro-batches** are not its business. It is called once for all of a rank's micro-batches (their embeddings are
      the leaves of its graph then), and ``WeightedSum.compare`` hands each of them its share of the gradients. So it
      may not add them up, nor count calls, nor draw random numbers that are not keyed.

    **Texts that are false of their image** (``Keys.negative``) are no captions, and take part in nothing but the losses
    that say so by ``reads_negatives``.

    ``Candidates`` has the positives and negatives of all ranks, tile by tile, and the hardest negatives.
    """

    reads_negatives = False
    """True if texts that are false of their image are candidates too."""

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """This rank's image embeddings float32[B, E] and text embeddings float32[C, E], of length 1 -> the rank's loss.

        ``keys`` says which of them belong together. The rules are those of the class.
        """
        raise NotImplementedError

    def compare_with_teacher(self, embedded: ModelOutput, keys: Keys) -> Loss:
        """Called in place of ``compare``; overridden by a comparison that also reads the teacher's embeddings.

        ``embedded`` has the image and text embeddings, ``embedded.teacher`` those of the teacher (if any objective of
        the step needs a teacher); all other fields are empty.
        """
        image = required(embedded.image_embedding, "image_embedding")
        return self.compare(image, required(embedded.text_embedding, "text_embedding"), keys)

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """The loss of a rank's only micro-batch; with several, ``WeightedSum.compare`` is called instead."""
        return self.compare_with_teacher(output, Keys.of(batch))


class FusionObjective(Objective):
    """A loss on image-text pairs that are chosen by the embeddings of the whole batch and then read by the decoder."""

    pairs_per_image: int
    """About how many pairs an image with one caption is in; the cost of a step depends on it."""

    def pairs(self, image: Tensor, text: Tensor, batches: Sequence[Batch], step_key: StepKey) -> tuple[Pairs, ...]:
        """All of a rank's embeddings (no gradient), in the order of its micro-batches -> the pairs of each of them."""
        raise NotImplementedError
