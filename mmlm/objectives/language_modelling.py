"""Language modelling of text that belongs to no image."""

from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.shared.token_prediction import TokenPrediction


class LanguageModelling(TokenPrediction):
    """Causal language modelling of the text-only captions of a batch, next token by next token::

        loss = - sum_{c without image, t} log p(target[c, t] | inputs[c, <= t]) / number of these targets of all ranks

    The decoder stays a language model while it learns to caption, as with the text-only documents of SimVLM
    (arXiv:2108.10904; there with the prefix loss). The objective shares the pass of ``Captioning``, which by default
    counts text-only captions too, with the weight of any other token; ``captions="with_image"`` there leaves them to
    this objective and its own weight. The loss is 0 at a step whose batch has no text-only caption.

    Args:
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).

    Raises:
        UserError: a smoothing out of range.
    """

    view, term = CAPTION, "language_modelling"

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: true at the targets of text-only captions."""
        return batch.target_mask & (batch.image_index == TEXT_ONLY)[:, None]
