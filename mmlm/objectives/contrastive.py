"""InfoNCE between images and texts, with several positives per row."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmlm.core.distributed import gather, sum_over_ranks
from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, loss_term, setting_of_training, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.views import EMBED
from mmlm.objectives.kernels.tiled import cross_entropies
from mmlm.objectives.objective import Comparison
from mmlm.objectives.shared.candidates import Candidates, Positives
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.shared.token_prediction import check_label_smoothing


class InfoNCE(Comparison):
    """Symmetric softmax contrastive loss with a learned temperature (CLIP, arXiv:2103.00020).

    For similarities ``s[b, c] = exp(log_scale) * image[b] . text[c]`` and positives ``p[b, c]`` in {0, 1}::

        image_to_text = - mean_b  sum_c p[b, c] / sum_c' p[b, c'] * log_softmax_c(s[b, :])[c]
        text_to_image = - mean_c  sum_b p[b, c] / sum_b' p[b', c] * log_softmax_b(s[:, c])[b]
        loss          = (image_to_text + text_to_image) / 2

    All captions of an image are its positives. Unless ``positives`` says otherwise, so are captions of equal text and
    captions of its concept (soft targets as in UniCL, arXiv:2204.03610). Text-only captions and images without a
    caption take no part. ``label_smoothing`` spreads that share of each row's target evenly over the row.

    Texts that are false of their image (``data.captions.negatives``) are further candidates c of all images in
    ``image_to_text``, as in NegCLIP (arXiv:2210.01936), which draws one for each caption and takes all of the batch.
    They are no rows of ``text_to_image``. The false text of one image that is a caption of another, letter by letter,
    is a positive of that other, unless ``positives`` is ``own``. NegCLIP's neighbouring images are not added.

    Similarities are computed in tiles and never held as a whole; see ``mmlm/objectives/kernels/tiled.py``. Over W ranks
    each rank compares its own images with the texts of all ranks, for both directions. Terms are local sums over global
    counts, so the result does not depend on W.

    Args:
        temperature: initial softmax temperature, that is 1 / exp(log_scale).
        learned_temperature: train ``log_scale``, which is kept in [0, ln ``max_scale``].
        max_scale: upper bound of exp(log_scale) (100 in CLIP).
        label_smoothing: share of the target spread over the row, in [0, 1).
        positives: ``own``: an image's own captions only, all others are negatives; with one caption per image this is
            CLIP. ``text``: also captions of other images that have the text of one of its own. ``concept``: also
            captions of its concept.

    Raises:
        UserError: a temperature or label smoothing out of its range.
    """

    views = frozenset({EMBED})
    reads_negatives = True
    figures: Mapping[str, Figure] = {
        "contrastive": loss_term("softmax over similarities, mean of both directions, nats"),
        "accuracy": share_of_training("accuracy", "share of the batch's images whose nearest text is a true one"),
        "temperature": setting_of_training("temperature", "divides the similarities", title="temperature"),
    }

    def __init__(
        self,
        temperature: float = 0.07,
        learned_temperature: bool = True,
        max_scale: float = 100.0,
        label_smoothing: float = 0.0,
        positives: Positives = "concept",
    ) -> None:
        super().__init__()
        if not 1 <= max_scale < math.inf:
            raise ArgumentError(f"max_scale: {max_scale} must be at least 1 and finite; CLIP's is 100")
        if not 1 / max_scale <= temperature <= 1:
            raise ArgumentError(f"temperature: {temperature} must lie in [1 / max_scale, 1] = [{1 / max_scale:g}, 1]")
        check_label_smoothing(label_smoothing)
        scale = torch.tensor(math.log(1 / temperature))
        self.logit_scale = nn.Parameter(scale, requires_grad=learned_temperature)
        self.max_scale, self.label_smoothing, self.positives = max_scale, label_smoothing, positives

    def scale(self) -> Tensor:
        """float32[]: exp(log_scale), the factor of the similarities.

        The parameter itself is clamped, as CLIP's authors do after a step. A clamp in the graph would have gradient 0
        beyond the bound, and a temperature that once overshot would never come back.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(self.max_scale))
        return self.logit_scale.exp()

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """See ``Comparison``: one term, and the figures ``accuracy`` and ``temperature``."""
        candidates = Candidates.of(keys, self.positives)
        own, everyone = image[candidates.images], gather(text[candidates.captions])
        scale, positive, texts = self.scale(), candidates.positive, everyone
        if keys.negative is not None:
            positive, texts = candidates.positive_with_false_texts, torch.cat([everyone, gather(text[keys.negative])])
        rows, columns, correct = cross_entropies(own, texts, scale, positive, self.label_smoothing)
        num_image = sum_over_ranks(torch.full_like(scale, len(own))).clamp(min=1)
        # Each direction is a mean over its own count, images or texts. To be one term, which is a sum over one count,
        # the sum over texts is scaled from the texts' count to the images'.
        of_texts = columns[candidates.own].sum() * num_image / max(1, len(everyone))
        # A figure is a sum over a count too: as a mean over images, the ranks' temperatures add up to the temperature.
        temperature = len(own) / scale.detach()
        return Loss(
            {"contrastive": Term((rows.sum() + of_texts) / 2, num_image)},
            {"accuracy": Term(correct.sum(), num_image), "temperature": Term(temperature, num_image)},
        )
