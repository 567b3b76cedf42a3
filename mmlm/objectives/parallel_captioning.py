"""Captioning in which a random share of the captions is predicted all at once, from the image alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, loss_term, share_of_training
from mmlm.core.keyed_random import stream
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.views import StepKey, TextPattern, TextView, ViewInputs
from mmlm.objectives.kernels.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.objective import Objective, required
from mmlm.objectives.shared.token_prediction import (
    Captions,
    check_label_smoothing,
    counted,
    new_mask_embedding,
    states_at,
)

_STREAM = stream("mmlm.objectives.parallel_captioning")

PARALLEL = TextView("parallel")


class ParallelCaptioning(Objective):
    """Captioning and parallel prediction in one pass (CapPa, arXiv:2306.07915)::

        loss = - sum_{c, t} log p(target[c, t] | read[c, t], image) / number of real targets of all ranks
        read[c, t] = start                      if caption c was drawn (with probability ``share``)
                     inputs[c, <= t]            otherwise, as in captioning

    Every input token of a drawn caption but the start is replaced by a learned mask embedding, which leaves only
    positions, and attention is not causal: all targets are predicted at once, from the image. Only captions with an
    image are drawn, by (seed, step, example); text-only captions, if they count, are read from left to right.

    Where we differ: the paper masks all inputs, we leave the start token. It tells that a caption begins and in which
    language, which is also given when a caption is generated; with a tokenizer of several languages the model would
    otherwise have to guess. The number of positions tells the caption's length, as in the paper.

    Args:
        share: probability that a caption with an image is predicted in parallel, in (0, 1]; 0.75 is the paper's. With 1
            the decoder never learns to read what it has written, and so cannot generate captions.
        captions: the captions that count; see ``Captions``.
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).

    Raises:
        UserError: a share or a smoothing out of range; from ``connect``, no decoder.
    """

    views = frozenset({PARALLEL})
    figures: Mapping[str, Figure] = {
        "parallel_captioning": loss_term("cross-entropy of the tokens, nats a token"),
        "accuracy_parallel": share_of_training("accuracy in parallel", "share of those tokens that are right"),
        "accuracy_causal": share_of_training("accuracy from left to right", "share of those tokens that are right"),
    }

    def __init__(self, share: float = 0.75, captions: Captions = "all", label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ArgumentError(f"share: {share} must lie in (0, 1]; captioning alone is mmlm.objectives.captioning")
        check_label_smoothing(label_smoothing)
        self.share, self.captions, self.label_smoothing = share, captions, label_smoothing
        self.register_parameter("mask_embedding", None)

    def connect(self, sizes: ModelSizes) -> None:
        """See ``Objective``."""
        self.mask_embedding = new_mask_embedding(sizes, "parallel captioning")

    def in_parallel(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C]: true for the captions that are predicted in parallel."""
        uniform = step_key.uniform(batch.caption_image_key, 1, _STREAM)[:, 0]
        return (uniform < self.share) & (batch.image_index != TEXT_ONLY)

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """See ``Objective``."""
        parallel = self.in_parallel(batch, step_key)
        masked = parallel[:, None] & batch.target_mask
        masked[:, :1] = False  # the start token
        # A parallel caption attends to all of its inputs, the others causally.
        visible = torch.where(parallel, batch.lengths - 1, 0)
        return {PARALLEL: TextPattern(visible, masked, self.mask_embedding)}

    def _targets(self, batch: Batch, step_key: StepKey) -> dict[str, Tensor]:
        """bool[C, T - 1] for each kind of caption, parallel and causal: true at its targets."""
        parallel = self.in_parallel(batch, step_key)[:, None]
        targets = batch.target_mask & counted(batch, self.captions)[:, None]
        return {"parallel": targets & parallel, "causal": targets & ~parallel}

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of targets, by kind of caption and together."""
        kinds = {name: targets.sum() for name, targets in self._targets(batch, step_key).items()}
        return kinds | {"tokens": kinds["parallel"] + kinds["causal"]}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term, and ``accuracy_parallel`` and ``accuracy_causal`` of tokens."""
        losses, figures = [], {}
        head_weight = required(output.head_weight, "head_weight")
        for kind, chosen in self._targets(batch, step_key).items():
            hidden = states_at(output.hidden[PARALLEL], batch, chosen)
            loss, correct = token_cross_entropy(hidden, head_weight, batch.targets[chosen], self.label_smoothing)
            losses.append(loss)
            figures[f"accuracy_{kind}"] = Term(correct, counts[kind].to(loss.dtype))
        total = torch.stack(losses).sum()
        term = Term(total, counts["tokens"].to(total.dtype), of_tokens=self.label_smoothing == 0)
        return Loss({"parallel_captioning": term}, figures)
