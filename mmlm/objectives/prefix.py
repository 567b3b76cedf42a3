"""Prefix language modelling: predicts the rest of a caption from its beginning."""

import torch
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stream
from mmlm.core.model_output import ModelSizes
from mmlm.core.views import StepKey, TextPattern, TextView, ViewInputs
from mmlm.objectives.shared.token_prediction import Captions, TokenPrediction, counted

_STREAM = stream("mmlm.objectives.prefix")

PREFIX = TextView("prefix")


class PrefixLanguageModelling(TokenPrediction):
    """Prefix language modelling (SimVLM, arXiv:2108.10904)::

        loss = - sum_c sum_{t >= visible[c] - 1} log p(target[c, t] | inputs[c, <= t], image)
               / number of such positions of all ranks

    The first ``visible`` inputs of a caption are its prefix: the start token and, in a uniform number drawn by (seed,
    step, example), none to all but one of its targets. Inputs of the prefix attend to each other in both directions,
    later inputs to all that comes before them. Only targets beyond the prefix count: a position within it could look
    its target up.

    Where we differ: in the paper the image's patches belong to the prefix and the model is one encoder-decoder; here
    the decoder reads the image from the bridge's memory, and the prefix is text only.

    Args:
        captions: the captions that count; see ``Captions``. The paper too trains on text without images.
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).

    Raises:
        UserError: a smoothing out of range; from ``connect``, no decoder.
    """

    view, term = PREFIX, "prefix"

    def __init__(self, captions: Captions = "all", label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.captions = captions

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``; there is nothing to make."""
        if sizes.decoder_width is None:
            raise UserError("objective: prefix language modelling needs a decoder, and there is none; choose one")

    def visible(self, batch: Batch, step_key: StepKey) -> Tensor:
        """int64[C]: the length of each caption's prefix in inputs, from 1 to all of them."""
        uniform = step_key.uniform(batch.caption_image_key, 1, _STREAM)[:, 0]
        return 1 + (uniform * (batch.lengths - 1)).long()

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """See ``Objective``."""
        return {PREFIX: TextPattern(self.visible(batch, step_key))}

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: true at the positions of captions that count whose target lies beyond the prefix."""
        places = torch.arange(batch.tokens.shape[1] - 1, device=batch.tokens.device)
        beyond = places[None, :] >= self.visible(batch, step_key)[:, None] - 1
        return beyond & batch.target_mask & counted(batch, self.captions)[:, None]
