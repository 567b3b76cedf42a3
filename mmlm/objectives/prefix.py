"""Prefix language modelling: the beginning of a caption is given, the rest is predicted."""

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.flow import Batch, ModelSizes, StepKey, Stream, TextPattern, TextView, ViewInputs
from mmlm.objectives.shared.token_prediction import Captions, TokenPrediction, counted

PREFIX = TextView("prefix")


class PrefixLanguageModelling(TokenPrediction):
    """Prefix language modelling (SimVLM, arXiv:2108.10904)::

        loss = - sum_c sum_{t >= visible[c] - 1} log p(target[c, t] | inputs[c, <= t], image)
               / number of such positions of all ranks

    The first ``visible`` inputs of a caption (the start token and 0 to all but one of its targets; uniform, drawn by
    (seed, step, example)) see each other in both directions, the others all that comes before them. Only targets
    beyond them count: a position within would find its target among what it sees.

    In the paper the image's patches belong to the prefix and the model is one encoder-decoder; here the decoder reads
    them from the bridge's memory, and the prefix is the text's alone.

    Args:
        captions: the captions that count; see ``Captions``. The paper trains on text without images alike.
        label_smoothing: as in arXiv:1512.00567.

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
        """int64[C]: so many leading inputs of each caption are its prefix, from 1 to all of them."""
        uniform = step_key.uniform(batch.caption_image_key, 1, Stream.PREFIX)[:, 0]
        return 1 + (uniform * (batch.lengths - 1)).long()

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """See ``Objective``."""
        return {PREFIX: TextPattern(self.visible(batch, step_key))}

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: the positions whose target lies beyond the prefix and counts."""
        places = torch.arange(batch.tokens.shape[1] - 1, device=batch.tokens.device)
        beyond = places[None, :] >= self.visible(batch, step_key)[:, None] - 1
        return beyond & batch.target_mask & counted(batch, self.captions)[:, None]
