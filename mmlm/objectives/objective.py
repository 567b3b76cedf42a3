"""What an objective is, and sums of several.

The loss of a step is that of the *whole* batch: of all micro-batches of all ranks. An objective sees one micro-batch
at a time, and in a ``BatchTotals`` what it has to know of the others; see ``mmlm/training/train_step.py``.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmlm.core.flow import Batch, Loss, ModelOutput, ModelSizes, Pairs, StepKey, View, ViewInputs
from mmlm.objectives.shared.keys import Keys


class Objective(nn.Module):
    """A loss that is a sum over examples (or tokens, or patches) divided by how many there are.

    Subclasses count their items from the batch alone, before any forward pass, and return sums over the items of the
    micro-batch, each divided by the count of the whole batch.
    """

    views: frozenset[View] = frozenset()
    """What the model has to run."""
    needs_teacher = False
    """Whether ``ModelOutput.teacher`` is needed."""
    needs_average = False
    """Whether the teacher has to be the moving average of the model and of this objective."""

    @property
    def teacher_views(self) -> frozenset[View]:
        """What the teacher has to run: the same views, unless a subclass says otherwise."""
        return self.views if self.needs_teacher else frozenset()

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the parts whose widths are the model's, once, before training. Raises UserError if it lacks them."""

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """What is random about its views, for this micro-batch; keyed by ``moment`` and example."""
        return {}

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """int64[] by name: the items of this micro-batch in each sum."""
        return {}

    def project(self, output: ModelOutput) -> ModelOutput:
        """``output`` with ``projected`` filled in by heads of its own; an averaged teacher runs the average of them."""
        return output

    def finish(self) -> None:
        """Called once all micro-batches of a step are differentiated, on every rank: for a mean that is kept of them.

        A rank with fewer micro-batches than another calls it once too, so it may reduce over ranks.
        """

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """The loss of a micro-batch; ``counts`` float[] are those of the whole batch, at least 1."""
        raise NotImplementedError


class Comparison(Objective):
    """A loss that compares images with texts across the whole batch, and sees nothing of them but embeddings."""

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """All of this rank's image embeddings float32[B, E] and text embeddings float32[C, E] -> its share of the loss.

        Embeddings of other ranks are gathered here; the counts of the terms are global.
        """
        raise NotImplementedError

    def compare_with_teacher(self, embedded: ModelOutput, keys: Keys) -> Loss:
        """As ``compare``, for a subclass that compares with the teacher too: both embeddings, its own and those of
        ``embedded.teacher`` (if any objective of the step needs one), and no other field."""
        return self.compare(embedded.image_embedding, embedded.text_embedding, keys)

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """The loss of a rank's only micro-batch."""
        return self.compare_with_teacher(output, Keys.of(batch))


class FusionObjective(Objective):
    """A loss on pairs of image and text that are chosen by the embeddings of the whole batch."""

    pairs_per_image: int
    """About how many are fused for an image with one caption; what a step costs depends on it."""

    def pairs(self, image: Tensor, text: Tensor, batches: Sequence[Batch], step_key: StepKey) -> tuple[Pairs, ...]:
        """All of a rank's embeddings (no gradient), in the order of its ``batches`` -> the pairs that each makes."""
        raise NotImplementedError
