"""The sigmoid loss between images and texts: a binary classification of every pair."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmlm.core.distributed import gather, sum_over_ranks
from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, loss_term, setting_of_training, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.views import EMBED
from mmlm.objectives.kernels.gradients_in_forward import SavingContext
from mmlm.objectives.kernels.tiled import TILE, BestPositive, PositiveTile, add_product, hits_of, product, tiles
from mmlm.objectives.objective import Comparison
from mmlm.objectives.shared.candidates import Candidates, Positives
from mmlm.objectives.shared.keys import Keys


class Sigmoid(Comparison):
    """Pairwise sigmoid loss with a learned temperature and bias (SigLIP, arXiv:2303.15343)::

        loss = - 1 / |images| * sum_{b, c} log sigmoid(z[b, c] * (exp(log_scale) * image[b] . text[c] + bias))

    with ``z[b, c] = 1`` for positives and -1 for all other pairs. The paper has one text per image and one positive per
    row; here equal concepts and equal texts are positives too unless ``positives`` says otherwise, as in ``InfoNCE``.
    Text-only captions and images without a caption take no part.

    Each pair is computed once, on the rank that has its image, in tiles that are dropped at once: the gradients are
    made in the forward pass. The result does not depend on the number of ranks.

    Args:
        temperature: initial value of 1 / exp(log_scale), which has no bounds later.
        learned_temperature: train ``log_scale``.
        bias: initial bias. -10 (the paper's) predicts every pair to be a negative at first, as nearly all pairs are.
        learned_bias: train the bias.
        positives: ``concept``, ``text`` or ``own``; see ``InfoNCE``.
    """

    views = frozenset({EMBED})
    figures: Mapping[str, Figure] = {
        "sigmoid": loss_term("binary cross-entropy of all pairs, nats an image"),
        "accuracy": share_of_training("accuracy", "share of the batch's images whose nearest text is a true one"),
        "temperature": setting_of_training("temperature", "divides the similarities", title="temperature"),
        "bias": setting_of_training("bias", "is added to the similarities"),
    }

    def __init__(
        self,
        temperature: float = 0.1,
        learned_temperature: bool = True,
        bias: float = -10.0,
        learned_bias: bool = True,
        positives: Positives = "concept",
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ArgumentError(f"temperature: {temperature} must be above 0 and finite")
        if not math.isfinite(bias):
            raise ArgumentError(f"bias: {bias} must be finite; SigLIP starts at -10")
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learned_temperature)
        self.logit_bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learned_bias)
        self.positives = positives

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """See ``Comparison``: one term, and the figures ``accuracy``, ``temperature`` and ``bias``.

        Accuracy is the share of images whose best text is a positive.
        """
        candidates = Candidates.of(keys, self.positives)
        own, everyone = image[candidates.images], gather(text[candidates.captions])
        scale = self.logit_scale.exp()
        local_sum, correct = sigmoid_sum(own, everyone, scale, self.logit_bias, candidates.positive)
        count = sum_over_ranks(torch.full_like(scale, len(own))).clamp(min=1)
        # Means over images, so that the shares of all ranks add up to temperature and bias.
        temperature, bias = len(own) / scale.detach(), len(own) * self.logit_bias.detach()
        return Loss(
            {"sigmoid": Term(local_sum, count)},
            {
                "accuracy": Term(correct.sum(), count),
                "temperature": Term(temperature, count),
                "bias": Term(bias, count),
            },
        )


def sigmoid_sum(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: PositiveTile, tile: int = TILE
) -> tuple[Tensor, Tensor]:
    """The sum over all pairs of ``- log sigmoid(z * (scale * image @ text.T + bias))``; z is 1 for a positive, else -1.

    Computed in at least float32, also under autocast.

    Args:
        image: float[n, E].
        text: float[N, E].
        scale: float[].
        bias: float[].
        positive: makes tiles of the matrix of positives, bool[n, N].
        tile: rows and columns of a tile.

    Returns:
        The sum float[]; and bool[n], true for rows whose largest entry is a positive, as in ``cross_entropies``.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    needed = torch.is_grad_enabled() and any(one.requires_grad for one in (image, text, scale, bias))
    inputs = (one.to(dtype) for one in (image, text, scale, bias))
    return _SigmoidSum.apply(*inputs, positive, tile, needed)


class _SigmoidSum(torch.autograd.Function):
    """The autograd function of ``sigmoid_sum``. The gradient of a logit is p - 1 for a positive and p for any other
    pair, where p is the sigmoid of the logit."""

    @staticmethod
    def forward(
        ctx: SavingContext,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive: PositiveTile,
        tile: int,
        needed: bool,
    ) -> tuple[Tensor, Tensor]:
        scaled, best, total = image * scale, BestPositive(image), image.new_zeros(())
        of_image, of_text, of_bias = torch.zeros_like(image), torch.zeros_like(text), image.new_zeros(())
        for i, j in tiles(len(image), len(text), tile):
            logits, hits = product(scaled[i], text[j].T).add_(bias), hits_of(positive(i, j))
            best.add(i, logits, hits)
            logits[hits] *= -1  # -z * logit: the loss of every pair is its softplus
            total += F.softplus(logits).sum()
            if not needed:
                continue
            # Of a positive, whose logit has changed sign: -sigmoid(-logit) = p - 1.
            change = logits.sigmoid_()
            change[hits] *= -1
            add_product(of_image[i], change, text[j])
            add_product(of_text[j], change.T, scaled[i])
            of_bias += change.sum()
        if needed:
            ctx.save_for_backward(of_image * scale, of_text, (of_image * image).sum(), of_bias)
        correct = best.correct()
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: SavingContext, of_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(of_total * gradient for gradient in ctx.saved_tensors), None, None, None
