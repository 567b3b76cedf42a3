"""Prefix language modelling: the beginning of a caption is given, the rest is predicted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.errors import UserError
from mmlm.flow import Batch, Drawn, Loss, ModelOutput, ModelSizes, Moment, Stream, Term, TextPattern, TextView
from mmlm.objectives.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.objective import Objective
from mmlm.objectives.text_positions import Captions, check_label_smoothing, counted, states_at

PREFIX = TextView("prefix")


class PrefixLanguageModelling(Objective):
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

    views = frozenset({PREFIX})

    def __init__(self, captions: Captions = "all", label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        self.captions, self.label_smoothing = captions, label_smoothing

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``; there is nothing to make."""
        if sizes.decoder_width is None:
            raise UserError("objective: prefix language modelling needs a decoder, and there is none; choose one")

    def visible(self, batch: Batch, moment: Moment) -> Tensor:
        """int64[C]: so many leading inputs of each caption are its prefix, from 1 to all of them."""
        uniform = moment.uniform(batch.caption_image_key, 1, Stream.PREFIX)[:, 0]
        return 1 + (uniform * (batch.lengths - 1)).long()

    def draw(self, batch: Batch, moment: Moment) -> Drawn:
        """See ``Objective``."""
        return {PREFIX: TextPattern(self.visible(batch, moment))}

    def suffix(self, batch: Batch, moment: Moment) -> Tensor:
        """bool[C, T - 1]: the positions whose target lies beyond the prefix and counts."""
        places = torch.arange(batch.tokens.shape[1] - 1, device=batch.tokens.device)
        beyond = places[None, :] >= self.visible(batch, moment)[:, None] - 1
        return beyond & batch.target_mask & counted(batch, self.captions)[:, None]

    def counts(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The supervised tokens."""
        return {"tokens": self.suffix(batch, moment).sum()}

    def forward(self, output: ModelOutput, batch: Batch, moment: Moment, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of tokens predicted right)."""
        chosen = self.suffix(batch, moment)
        hidden = states_at(output.hidden[PREFIX], batch, chosen)
        loss, correct = token_cross_entropy(hidden, output.head_weight, batch.targets[chosen], self.label_smoothing)
        count = counts["tokens"].to(loss.dtype)
        return Loss(
            {"prefix": Term(loss, count, of_tokens=self.label_smoothing == 0)}, {"accuracy": Term(correct, count)}
        )
