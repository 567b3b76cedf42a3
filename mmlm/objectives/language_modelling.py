"""Language modelling of text that belongs to no image."""

from torch import Tensor

from mmlm.core.flow import CAPTION, TEXT_ONLY, Batch, StepKey
from mmlm.objectives.shared.token_prediction import TokenPrediction


class LanguageModelling(TokenPrediction):
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

    view, term = CAPTION, "language_modelling"

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: the targets of text-only captions."""
        return batch.target_mask & (batch.image_index == TEXT_ONLY)[:, None]
