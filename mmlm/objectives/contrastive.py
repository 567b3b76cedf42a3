"""InfoNCE between images and texts, with several positives a row."""

import math

import torch
from torch import Tensor, nn

from mmlm.distributed import gather, sum_over_ranks
from mmlm.errors import UserError
from mmlm.flow import EMBED, Loss, Term
from mmlm.objectives.keys import Keys, positives
from mmlm.objectives.objective import Comparison


class InfoNCE(Comparison):
    """Symmetric softmax contrastive loss with a learned temperature (CLIP, arXiv:2103.00020).

    For similarities ``s[b, c] = exp(log_scale) * image[b] . text[c]`` and positives ``p[b, c]`` in {0, 1}::

        image_to_text = - mean_b  sum_c p[b, c] / sum_c' p[b, c'] * log_softmax_c(s[b, :])[c]
        text_to_image = - mean_c  sum_b p[b, c] / sum_b' p[b', c] * log_softmax_b(s[:, c])[b]
        loss          = (image_to_text + text_to_image) / 2

    Several captions of one image, images and captions of one concept, and equal captions are positives of each other
    (soft targets as in UniCL, arXiv:2204.03610); CLIP has exactly one positive a row and counts the others as false
    negatives. Text-only captions and images without a caption take no part. ``label_smoothing`` spreads that share of
    each row's target evenly over the row.

    Over W ranks the local images are compared with every rank's texts and the other way round; terms are local sums
    over global counts, so the result does not depend on W.

    Args:
        temperature: initial softmax temperature, 1 / exp(log_scale).
        learned_temperature: train ``log_scale``, which is kept in [0, ln ``max_scale``].
        max_scale: upper bound of exp(log_scale) (100 in CLIP).
        label_smoothing: share of the target spread over the row, in [0, 1).
    """

    views = frozenset({EMBED})

    def __init__(
        self,
        temperature: float = 0.07,
        learned_temperature: bool = True,
        max_scale: float = 100.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 / max_scale <= temperature <= 1:
            raise UserError(f"temperature: {temperature} must lie in [1 / max_scale, 1] = [{1 / max_scale:g}, 1]")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")
        scale = torch.tensor(math.log(1 / temperature))
        self.logit_scale = nn.Parameter(scale, requires_grad=learned_temperature)
        self.max_scale, self.label_smoothing = max_scale, label_smoothing

    def scale(self) -> Tensor:
        """float32[]: what similarities are multiplied by.

        The parameter itself is clamped (as CLIP's authors do after a step): a clamp in the graph has gradient 0 beyond
        the bound, and a temperature that once overshot would never come back.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(self.max_scale))
        return self.logit_scale.exp()

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """See ``Comparison``: one term, and the figures ``accuracy`` and ``temperature``."""
        all_image, all_text = gather(image), gather(text)
        everyone = keys.gathered()
        scale = self.scale()
        by_image = positives(keys, everyone)
        by_text = positives(everyone, keys).T
        # Not under autocast: bfloat16 rounds similarities of 100 to the nearest half.
        with torch.autocast(image.device.type, enabled=False):
            image_rows = self._rows(scale * image @ all_text.T, by_image, everyone.has_image)
            text_rows = self._rows(scale * text @ all_image.T, by_text, everyone.has_caption)
        num_image = sum_over_ranks(image_rows.used.sum()).clamp(min=1)
        num_text = sum_over_ranks(text_rows.used.sum()).clamp(min=1)
        # One term: both directions over their own counts, brought to one count so that a term stays sum / count.
        local_sum = (image_rows.losses.sum() + text_rows.losses.sum() * num_image / num_text) / 2
        count = num_image.to(local_sum.dtype)
        # The temperature is a mean over images too, so that the shares of all ranks add up to it.
        temperature = image_rows.used.sum() / scale.detach()
        return Loss(
            {"contrastive": Term(local_sum, count)},
            {"accuracy": Term(image_rows.correct.sum(), count), "temperature": Term(temperature, count)},
        )

    def _rows(self, logits: Tensor, positive: Tensor, candidates: Tensor) -> "_Rows":
        """Cross-entropy of each row of float32[R, K] logits against its positives bool[R, K], over ``candidates``."""
        used = positive.any(dim=1)
        if positive.shape[1] == 0:
            return _Rows(logits.sum(dim=1), used, used)
        logits = logits.masked_fill(~candidates[None, :], float("-inf"))
        log_probs = logits.log_softmax(dim=1).masked_fill(~candidates[None, :], 0.0)
        target = positive.to(logits.dtype) / positive.sum(dim=1, keepdim=True).clamp(min=1)
        if self.label_smoothing:
            uniform = candidates.to(logits.dtype) / candidates.sum().clamp(min=1)
            target = (1 - self.label_smoothing) * target + self.label_smoothing * uniform
        losses = -(target * log_probs).sum(dim=1) * used
        best = logits.detach().argmax(dim=1, keepdim=True)
        correct = positive.gather(1, best).squeeze(1) & used
        return _Rows(losses, used, correct)


class _Rows:
    """Loss float32[R], and whether each row counts and was right, bool[R]."""

    def __init__(self, losses: Tensor, used: Tensor, correct: Tensor) -> None:
        self.losses, self.used, self.correct = losses, used, correct
