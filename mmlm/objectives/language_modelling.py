"""Language modelling of text that belongs to no image."""

from collections.abc import Mapping

from torch import Tensor

from mmlm.flow import CAPTION, TEXT_ONLY, Batch, Loss, ModelOutput, Moment, Term
from mmlm.objectives.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.objective import Objective
from mmlm.objectives.text_positions import check_label_smoothing, states_at


class LanguageModelling(Objective):
    """Causal language modelling of the text-only captions of a batch, next token by next token::

        loss = - sum_{c without image, t} log p(target[c, t] | inputs[c, <= t]) / number of these targets of all ranks

    It keeps a decoder a language model while it learns to caption, as text-only documents do in SimVLM
    (arXiv:2108.10904; there with its prefix loss). It shares the pass of ``Captioning``, which by default counts
    text-only captions as well, each token as much as any other; ``captions="with_image"`` leaves them to this objective
    and its weight. A step whose batch has no text-only caption has a loss of 0.

    Args:
        label_smoothing: as in arXiv:1512.00567.

    Raises:
        UserError: a smoothing out of range.
    """

    views = frozenset({CAPTION})

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    @staticmethod
    def _chosen(batch: Batch) -> Tensor:
        """bool[C, T - 1]: the targets of text-only captions."""
        return batch.target_mask & (batch.image_index == TEXT_ONLY)[:, None]

    def counts(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The supervised tokens."""
        return {"tokens": self._chosen(batch).sum()}

    def forward(self, output: ModelOutput, batch: Batch, moment: Moment, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of tokens predicted right)."""
        chosen = self._chosen(batch)
        hidden = states_at(output.hidden[CAPTION], batch, chosen)
        loss, correct = token_cross_entropy(hidden, output.head_weight, batch.targets[chosen], self.label_smoothing)
        count = counts["tokens"].to(loss.dtype)
        return Loss(
            {"language_modelling": Term(loss, count, of_tokens=self.label_smoothing == 0)},
            {"accuracy": Term(correct, count)},
        )
