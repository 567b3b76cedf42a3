"""InfoNCE between images and texts, with several positives a row."""

import math

import torch
from torch import Tensor, nn

from mmlm.core.distributed import gather, sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.core.flow import EMBED, Loss, Term
from mmlm.objectives.kernels.tiled import cross_entropies
from mmlm.objectives.objective import Comparison
from mmlm.objectives.shared.candidates import Candidates, Positives
from mmlm.objectives.shared.keys import Keys


class InfoNCE(Comparison):
    """Symmetric softmax contrastive loss with a learned temperature (CLIP, arXiv:2103.00020).

    For similarities ``s[b, c] = exp(log_scale) * image[b] . text[c]`` and positives ``p[b, c]`` in {0, 1}::

        image_to_text = - mean_b  sum_c p[b, c] / sum_c' p[b, c'] * log_softmax_c(s[b, :])[c]
        text_to_image = - mean_c  sum_b p[b, c] / sum_b' p[b', c] * log_softmax_b(s[:, c])[b]
        loss          = (image_to_text + text_to_image) / 2

    Several captions of one image are its positives; so are, unless ``positives`` says otherwise, captions of equal text
    and of its concept (soft targets as in UniCL, arXiv:2204.03610). Text-only captions and images without a caption
    take no part. ``label_smoothing`` spreads that share of each row's target evenly over the row.

    Similarities are computed in tiles and never held as a whole; see ``mmlm/objectives/kernels/tiled.py``. Over W ranks
    the local images are compared with every rank's texts, which serves both directions; terms are local sums over
    global counts, so the result does not depend on W.

    Args:
        temperature: initial softmax temperature, 1 / exp(log_scale).
        learned_temperature: train ``log_scale``, which is kept in [0, ln ``max_scale``].
        max_scale: upper bound of exp(log_scale) (100 in CLIP).
        label_smoothing: share of the target spread over the row, in [0, 1).
        positives: ``own``: an image's own captions only, all others are negatives; with one caption an image this is
            CLIP. ``text``: also captions of other images whose text one of its own captions has. ``concept``: also
            captions of its concept.
    """

    views = frozenset({EMBED})

    def __init__(
        self,
        temperature: float = 0.07,
        learned_temperature: bool = True,
        max_scale: float = 100.0,
        label_smoothing: float = 0.0,
        positives: Positives = "concept",
    ) -> None:
        super().__init__()
        if not 1 / max_scale <= temperature <= 1:
            raise UserError(f"temperature: {temperature} must lie in [1 / max_scale, 1] = [{1 / max_scale:g}, 1]")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")
        scale = torch.tensor(math.log(1 / temperature))
        self.logit_scale = nn.Parameter(scale, requires_grad=learned_temperature)
        self.max_scale, self.label_smoothing, self.positives = max_scale, label_smoothing, positives

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
        candidates = Candidates.of(keys, self.positives)
        own, everyone = image[candidates.images], gather(text[candidates.captions])
        scale = self.scale()
        rows, columns, correct = cross_entropies(own, everyone, scale, candidates.positive, self.label_smoothing)
        num_image = sum_over_ranks(torch.full_like(scale, len(own))).clamp(min=1)
        # One term: both directions over their own counts, brought to one count so that a term stays sum / count.
        of_texts = columns[candidates.own].sum() * num_image / max(1, len(everyone))
        # The temperature is a mean over images too, so that the shares of all ranks add up to it.
        temperature = len(own) / scale.detach()
        return Loss(
            {"contrastive": Term((rows.sum() + of_texts) / 2, num_image)},
            {"accuracy": Term(correct.sum(), num_image), "temperature": Term(temperature, num_image)},
        )
