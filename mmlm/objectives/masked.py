"""Masked language modelling: tokens of a caption are hidden and found again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.errors import UserError
from mmlm.flow import Batch, Drawn, Loss, ModelOutput, ModelSizes, Moment, Stream, Term, TextPattern, TextView
from mmlm.objectives.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.objective import Objective
from mmlm.objectives.text_positions import Captions, check_label_smoothing, counted, new_mask_embedding, states_at

MASKED = TextView("masked")


class MaskedLanguageModelling(Objective):
    """Masked language modelling given the image (BERT, arXiv:1810.04805; with an image as in ALBEF, arXiv:2107.07651)::

        loss = - sum_{c, t in masked[c]} log p(inputs[c, t] | inputs[c, t' not in masked[c]], image)
               / number of masked inputs of all ranks

    A masked input is replaced by a learned embedding, and every position sees all of the caption. What is predicted is
    the token that stood at the masked place, not the next one. Each token between start and end is masked with
    probability ``share``, drawn by (seed, step, example); if none of a caption was, the one whose draw was lowest is:
    every caption with a token has a share in the loss. Start (the language) and end are not masked.

    Both papers mask 15%, and leave a tenth of these as they are and swap another for a random token. We always mask:
    those exist to fit an encoder that never sees a mask later, and this decoder is used from left to right.

    Args:
        share: probability of a token to be masked, in (0, 1]. The default is higher than the papers': captions are
            short, and 40% was found better for large models (arXiv:2202.08005).
        captions: the captions that count; see ``Captions``.
        label_smoothing: as in arXiv:1512.00567.

    Raises:
        UserError: a share or a smoothing out of range; from ``connect``, no decoder.
    """

    views = frozenset({MASKED})

    def __init__(self, share: float = 0.4, captions: Captions = "all", label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise UserError(f"share: {share} must lie in (0, 1]")
        check_label_smoothing(label_smoothing)
        self.share, self.captions, self.label_smoothing = share, captions, label_smoothing
        self.register_parameter("mask_embedding", None)

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``."""
        self.mask_embedding = new_mask_embedding(sizes, "masked language modelling")

    def masked(self, batch: Batch, moment: Moment) -> Tensor:
        """bool[C, T - 1]: the inputs that are masked."""
        columns = batch.tokens.shape[1] - 1
        uniform = moment.uniform(batch.caption_image_key, columns, Stream.MASKED_TEXT)
        places = torch.arange(columns, device=uniform.device)[None, :]
        maskable = (places > 0) & (places < (batch.lengths - 1)[:, None])
        uniform = uniform.masked_fill(~maskable, 2.0)
        return maskable & ((uniform < self.share) | (uniform == uniform.min(dim=1, keepdim=True).values))

    def draw(self, batch: Batch, moment: Moment) -> Drawn:
        """See ``Objective``."""
        return {MASKED: TextPattern(batch.lengths - 1, self.masked(batch, moment), self.mask_embedding)}

    def _chosen(self, batch: Batch, moment: Moment) -> Tensor:
        """bool[C, T - 1]: the masked inputs that count."""
        return self.masked(batch, moment) & counted(batch, self.captions)[:, None]

    def counts(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The masked tokens."""
        return {"tokens": self._chosen(batch, moment).sum()}

    def forward(self, output: ModelOutput, batch: Batch, moment: Moment, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of masked tokens found again)."""
        chosen = self._chosen(batch, moment)
        hidden = states_at(output.hidden[MASKED], batch, chosen)
        loss, correct = token_cross_entropy(hidden, output.head_weight, batch.inputs[chosen], self.label_smoothing)
        count = counts["tokens"].to(loss.dtype)
        return Loss(
            {"masked": Term(loss, count, of_tokens=self.label_smoothing == 0)}, {"accuracy": Term(correct, count)}
        )
