"""The base of objectives that predict tokens of captions at some positions of one text view, and shared pieces."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import loss_term, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.views import StepKey, TextView
from mmlm.objectives.kernels.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.objective import Objective, required


def states_at(hidden: Tensor, batch: Batch, chosen: Tensor) -> Tensor:
    """float[S, D]: the states float[P, D] of a text view at the S positions where bool[C, T - 1] ``chosen`` is true.

    The chosen positions have to lie within ``batch.target_mask``. The order is row-major, that of
    ``batch.targets[chosen]``.
    """
    return hidden[chosen[batch.target_mask]]


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises UserError if ``label_smoothing`` is outside of [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")


class TokenPrediction(Objective):
    """Cross-entropy at the chosen positions, each of the same weight, divided by their number on all ranks.

    A subclass names its view and its term, chooses the positions and gives the token that is right at each of them.

    Args:
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).

    Raises:
        UserError: a smoothing out of range.
    """

    view: TextView
    """The view whose hidden states are read."""
    term: str
    """Name of the term in the loss."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        self.views = frozenset({self.view})
        self.figures = {
            self.term: loss_term("cross-entropy of the predicted tokens, nats a token"),
            "accuracy": share_of_training("accuracy", "share of the predicted tokens that are right"),
        }

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: true at the positions that are predicted, all within ``batch.target_mask``."""
        raise NotImplementedError

    def wanted(self, batch: Batch) -> Tensor:
        """int64[C, T - 1]: the right token at each position."""
        return batch.targets

    def cross_entropy(self, hidden: Tensor, head_weight: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the number of right predictions over all positions; see ``token_cross_entropy``."""
        return token_cross_entropy(hidden, head_weight, wanted, self.label_smoothing)

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of tokens that are predicted."""
        return {"tokens": self.chosen(batch, step_key).sum()}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of tokens predicted right)."""
        chosen = self.chosen(batch, step_key)
        hidden = states_at(output.hidden[self.view], batch, chosen)
        head_weight = required(output.head_weight, "head_weight")
        loss, correct = self.cross_entropy(hidden, head_weight, self.wanted(batch)[chosen])
        count = counts["tokens"].to(loss.dtype)
        term = Term(loss, count, of_tokens=self.label_smoothing == 0)
        return Loss({self.term: term}, {"accuracy": Term(correct, count)})


Captions = Literal["all", "with_image"]
"""The captions that are predicted: all of the batch, or only those that belong to an image."""

INIT_STD = 0.02
"""Standard deviation of a new mask embedding, the same as of token embeddings in BERT and GPT-2."""


def counted(batch: Batch, captions: Captions) -> Tensor:
    """bool[C]: true for each caption of the batch that ``captions`` admits and whose kind is predicted."""
    predicted = torch.ones_like(batch.image_index, dtype=torch.bool) if batch.predicted is None else batch.predicted
    return predicted if captions == "all" else predicted & (batch.image_index != TEXT_ONLY)


def new_mask_embedding(sizes: ModelSizes, owner: str) -> nn.Parameter:
    """float32[D] from normal(0, 0.02): the parameter that replaces masked inputs.

    Raises UserError, in the name of ``owner``, if the model has no decoder.
    """
    if sizes.decoder_width is None:
        raise UserError(f"objective: {owner} needs a decoder, and there is none; choose one")
    return nn.Parameter(nn.init.normal_(torch.empty(sizes.decoder_width), std=INIT_STD))
