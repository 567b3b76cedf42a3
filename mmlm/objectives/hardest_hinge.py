"""A hinge on the most similar wrong caption and the most similar wrong image of each pair (VSE++)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.core.distributed import gather, sum_over_ranks
from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, loss_term, setting_of_training, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.views import EMBED
from mmlm.objectives.objective import Comparison
from mmlm.objectives.shared.candidates import NONE, Candidates, Positives
from mmlm.objectives.shared.keys import Keys


class HardestHinge(Comparison):
    """Hinge loss on the hardest negatives of the whole batch (VSE++, arXiv:1707.05612, equation 6)::

        loss = mean over pairs (i, c) of   max(0, margin + max_c' s(i, c') - s(i, c))
                                         + max(0, margin + max_i' s(i', c) - s(i, c))

    where ``s`` is the cosine similarity, a pair is a caption with its own image, and c' and i' run over all captions
    and images of all ranks that are no positives. Text-only captions and images without a caption take no part.

    From random weights this loss alone often collapses: everything is embedded alike, all similarities are equal, and
    the loss stands at twice the margin, from where hardly any gradient leads away. The figure ``gap`` tells: it is 0
    then. Train it beside a contrastive loss (``objective=hardest_hinge`` does), or from pretrained towers as the paper.

    Args:
        margin: the similarity by which a pair has to be ahead of every negative.
        positives: ``concept``, ``text`` or ``own``; see ``InfoNCE``.

    Raises:
        ArgumentError: a margin that is not in (0, 2), the range of differences of cosines.
    """

    views = frozenset({EMBED})
    figures: Mapping[str, Figure] = {
        "": loss_term("how far the hardest negatives come within the margin of a pair, both ways"),
        "accuracy": share_of_training("accuracy", "pairs that are nearer than every wrong caption of the image"),
        "gap": setting_of_training("gap", "a pair's similarity minus that of its hardest negatives; 0: all is alike"),
    }

    def __init__(self, margin: float = 0.2, positives: Positives = "concept") -> None:
        super().__init__()
        if not 0 < margin < 2:
            raise ArgumentError(f"margin: {margin} must lie in (0, 2), the range of differences of cosines")
        self.margin, self.positives = margin, positives

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        """See ``Comparison``: one term, and the figures ``accuracy`` and ``gap``."""
        candidates = Candidates.of(keys, self.positives)
        images, captions = image[candidates.images], text[candidates.captions]
        every_image, every_caption = gather(images), gather(captions)
        wrong_caption, wrong_image = candidates.hardest(images, every_caption)
        # A row for each pair of this rank, that is, for each caption.
        paired = images[candidates.image_of]
        true = _cosines(paired, captions)
        of_captions, caption_exists = _chosen(paired, every_caption, wrong_caption[candidates.image_of])
        of_images, image_exists = _chosen(captions, every_image, wrong_image)
        hinge = self._hinge(true, of_captions, caption_exists) + self._hinge(true, of_images, image_exists)
        count = sum_over_ranks(true.new_full((), len(true))).clamp(min=1)
        with torch.no_grad():
            correct = ((true > of_captions) | ~caption_exists).sum()
            gaps = (true - of_captions) * caption_exists / 2 + (true - of_images) * image_exists / 2
        return Loss(
            {"hardest_hinge": Term(hinge.sum(), count)},
            {"accuracy": Term(correct, count), "gap": Term(gaps.sum(), count)},
        )

    def _hinge(self, true: Tensor, negative: Tensor, exists: Tensor) -> Tensor:
        """float[P]: the hinge of each pair; 0 where there is no negative."""
        return torch.where(exists, (self.margin + negative - true).relu(), 0.0)


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """float[P]: the products of vectors of unit length, row by row, in at least float32."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    return (first.to(dtype) * second.to(dtype)).sum(dim=1)


def _chosen(queries: Tensor, others: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """float[P] and bool[P]: the similarity of each query to its chosen one of ``others``, and whether there is one.

    Where there is none the similarity is -1, the least that a cosine can be.
    """
    exists = chosen != NONE
    return torch.where(exists, _cosines(queries, others[chosen.clamp(min=0)]), -1.0), exists
