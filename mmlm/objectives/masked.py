"""Masked language modelling: predicts tokens of a caption that are hidden from the decoder."""

import torch
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_random import stream
from mmlm.core.model_output import ModelSizes
from mmlm.core.views import StepKey, TextPattern, TextView, ViewInputs
from mmlm.objectives.shared.token_prediction import Captions, TokenPrediction, counted, new_mask_embedding

_STREAM = stream("mmlm.objectives.masked")

MASKED = TextView("masked")


class MaskedLanguageModelling(TokenPrediction):
    """Masked language modelling given the image (BERT, arXiv:1810.04805; with an image as in ALBEF, arXiv:2107.07651)::

        loss = - sum_{c, t in masked[c]} log p(inputs[c, t] | inputs[c, t' not in masked[c]], image)
               / number of masked inputs of all ranks

    A masked input is replaced by a learned embedding, and every position attends to the whole caption. The token that
    stood at the masked position is predicted, not the next one. Each token between start and end is masked with
    probability ``share``, drawn by (seed, step, example). If none of a caption's tokens is drawn, the one with the
    lowest draw is masked, so that every caption with a token counts in the loss. Start (the language) and end are not
    masked.

    Both papers mask 15%; of these they leave a tenth unchanged and replace another tenth by a random token, to fit an
    encoder that later never sees a mask. We always mask: this decoder is used from left to right.

    Args:
        share: probability that a token is masked, in (0, 1]. The default is higher than the papers': captions are
        short,
            and 40% was found to be better for large models (arXiv:2202.08005).
        captions: the captions that count; see ``Captions``.
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).

    Raises:
        UserError: a share or a smoothing out of range; from ``connect``, no decoder.
    """

    view, term = MASKED, "masked"

    def __init__(self, share: float = 0.4, captions: Captions = "all", label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        if not 0 < share <= 1:
            raise ArgumentError(f"share: {share} must lie in (0, 1]")
        self.share, self.captions = share, captions
        self.register_parameter("mask_embedding", None)

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``."""
        self.mask_embedding = new_mask_embedding(sizes, "masked language modelling")

    def masked(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: true for the inputs that are masked."""
        columns = batch.tokens.shape[1] - 1
        uniform = step_key.uniform(batch.caption_image_key, columns, _STREAM)
        places = torch.arange(columns, device=uniform.device)[None, :]
        maskable = (places > 0) & batch.target_mask
        if batch.trained is not None:
            maskable &= batch.trained[:, :-1]  # what is predicted is the input itself, not the next one
        # 2 is above every draw, so that the lowest draw of a caption is that of a maskable token if it has one.
        uniform = uniform.masked_fill(~maskable, 2.0)
        return maskable & ((uniform < self.share) | (uniform == uniform.min(dim=1, keepdim=True).values))

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """See ``Objective``."""
        return {MASKED: TextPattern(batch.lengths - 1, self.masked(batch, step_key), self.mask_embedding)}

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: true for the masked inputs of the captions that count."""
        return self.masked(batch, step_key) & counted(batch, self.captions)[:, None]

    def wanted(self, batch: Batch) -> Tensor:
        """int64[C, T - 1]: the inputs themselves, of which the masked ones are predicted."""
        return batch.inputs
