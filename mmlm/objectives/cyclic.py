"""CyCLIP's consistency: similarities stay the same if the images and texts of two pairs are exchanged."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, loss_term
from mmlm.core.loss import Loss, Term
from mmlm.objectives.objective import Comparison
from mmlm.objectives.shared.keys import Keys


class Cyclic(Comparison):
    """Cross-modal and in-modal consistency (CyCLIP, arXiv:2205.14459), to be added to a contrastive loss.

    A pair is a caption and its own image. For the N pairs (I[j], T[j]) of the whole batch::

        cross_modal_loss = mean_{j, k} (I[j] . T[k] - I[k] . T[j]) ** 2
        in_modal_loss    = mean_{j, k} (I[j] . I[k] - T[j] . T[k]) ** 2
        loss             = cross_modal * cross_modal_loss + in_modal * in_modal_loss

    Both means are over all N ** 2 choices of j and k, j = k included, as in the paper.

    An image with several captions is in as many pairs, so it counts as often as it has captions. Two pairs of one image
    are compared as any others are: that asks its captions to be equally near to it, and as alike as the image is to
    itself. Captions without an image and images without a caption take part in no pair. Which captions of other images
    are positives makes no difference: what two similarities should be is not asked, only that they are equal.

    Alone it is at its least, 0, if everything is embedded alike or the texts are a mirror image of the images.

    Difference from the paper: its sums over j and k are divided by N, and not by N ** 2, so that their weight beside
    the softmax grows with the batch. The paper's 0.25 is 0.25 * N here: 32 for its batches of 128 pairs.

    No similarity is ever computed. Multiplied out, both sums are scalar products of the three matrices ``moments``,
    whose size is E x E however large the batch is, and which are all that the ranks exchange. What is left of these
    products is a small difference of large numbers, so they are float64.

    Args:
        cross_modal: weight of the first mean.
        in_modal: weight of the second.

    Raises:
        ArgumentError: a weight that is negative or not finite, or both are 0.
    """

    figures: Mapping[str, Figure] = {
        "": loss_term("weighted sum of the cross-modal and the in-modal inconsistency"),
        "cross_modal": Figure(
            "cross-modal",
            "mean of (s(image j, text k) - s(image k, text j))^2 over all pairs j and k of the batch",
            title="cross-modal inconsistency",
            higher_is_better=False,
            shown=("chart", "console"),
        ),
        "in_modal": Figure(
            "in-modal",
            "mean of (s(image j, image k) - s(text j, text k))^2 over all pairs j and k of the batch",
            title="in-modal inconsistency",
            higher_is_better=False,
            shown=("chart", "console"),
        ),
    }

    def __init__(self, cross_modal: float = 1.0, in_modal: float = 1.0) -> None:
        super().__init__()
        for name, weight in (("cross_modal", cross_modal), ("in_modal", in_modal)):
            if not 0 <= weight < math.inf:
                raise ArgumentError(f"{name}: {weight} must be at least 0 and finite")
        if cross_modal == in_modal == 0:
            raise ArgumentError(f"cross_modal: {cross_modal} must be above 0 if in_modal is 0 too")
        self.cross_modal, self.in_modal = cross_modal, in_modal

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """See ``Comparison``: one term, and the figures ``cross_modal`` and ``in_modal``, both without weights."""
        in_pair = keys.has_image
        own = moments(image[keys.image_index[in_pair]], text[in_pair])
        everyone = sum_over_ranks(own)
        # float64 holds the square of any count exactly enough; an int64 would be divided as float32.
        choices = sum_over_ranks(in_pair.sum()).double().clamp(min=1).square()
        cross_modal, in_modal = inconsistencies(own, everyone)
        share = self.cross_modal * cross_modal + self.in_modal * in_modal
        # The share has this rank's pairs as j and everyone's as k. The shares of the other ranks have this rank's pairs
        # as k, and as the sums are symmetric in j and k, their gradient for this rank is that of its own share once
        # more. So the gradient is doubled, and the value is not: none has to come from another rank.
        total = 2 * share - share.detach()
        return Loss(
            {"cyclic": Term(total, choices)},
            {
                "cross_modal": Term(cross_modal.detach(), choices),
                "in_modal": Term(in_modal.detach(), choices),
            },
        )


def moments(image: Tensor, text: Tensor) -> Tensor:
    """The sums over pairs of image x image, text x text and image x text, outer products of the two vectors of a pair.

    Args:
        image: float[n, E], the image of each pair.
        text: float[n, E], its text.

    Returns:
        float64[3, E, E]; zeros with a gradient path without any pair.
    """
    image, text = image.double(), text.double()
    return torch.stack([image.T @ image, text.T @ text, image.T @ text])


def inconsistencies(own: Tensor, everyone: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the squares of the class's two differences, for j out of some pairs and k out of others.

    A square is multiplied out, and each of its products summed over j and k, for example::

        sum_{j, k} (I[j] . T[k]) ** 2 = sum_{a, b} (sum_j I[j, a] * I[j, b]) * (sum_k T[k, a] * T[k, b])

    Args:
        own: float64[3, E, E], the ``moments`` of the pairs j.
        everyone: float64[3, E, E], those of the pairs k.

    Returns:
        float64[] and float64[], cross-modal and in-modal; at least 0, up to rounding.
    """
    (image, text, mixed), (all_image, all_text, all_mixed) = own, everyone
    cross_modal = (image * all_text).sum() + (text * all_image).sum() - 2 * (mixed * all_mixed.T).sum()
    in_modal = (image * all_image).sum() + (text * all_text).sum() - 2 * (mixed * all_mixed).sum()
    return cross_modal, in_modal
