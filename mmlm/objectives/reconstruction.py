"""Reconstruction: predicts the pixels of masked patches from the visible patches."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.figure import Figure, loss_term, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.views import StepKey
from mmlm.objectives.shared.masked_patches import MaskedPatches, other_patches, patches_of, statistics_of

FLAT = 1e-6
"""Added to a patch's variance (of pixels in [0, 1]), so that the target of a patch of one colour is 0 and not 0 / 0."""


class MaskedReconstruction(MaskedPatches):
    """Masked autoencoding (MAE, arXiv:2111.06377) as an auxiliary objective.

    The encoder sees a random share of each image's patches. A small bidirectional Transformer reads the encoder's
    tokens and a mask token for every other patch, with positions, and predicts the pixels of the masked patches::

        loss = sum_{b, n masked} mean_i (prediction[b, n, i] - target[b, n, i])^2  /  masked patches of all ranks

    where i runs through the H * W * 3 values of a patch in [0, 1]. With ``normalise`` the target is the patch's pixels
    minus their mean, divided by ``sqrt(variance + 1e-6)``, both over i. Where we differ: MAE divides by n - 1 for the
    variance and normalises colours first.

    Figure ``explained`` (with ``normalise``): the share of the targets' variance that predictions explain, 1 - sum of
    squared errors / sum of squared targets; 0 for predicting each patch's mean.

    Args:
        masked_share: share of the patches that are masked.
        width, depth, num_heads: of the decoder; ``width`` is a multiple of 4, for its fixed positions.
        normalise: whether to predict normalised pixels.

    Raises:
        UserError: sizes out of range, or a model whose encoder cannot see some patches only.
    """

    figures: Mapping[str, Figure] = {
        "reconstruction": loss_term("mean squared error of masked pixels"),
        "explained": share_of_training(
            "explained", "share of the masked pixels' variance that is predicted; 0 for predicting the mean"
        ),
    }

    def __init__(
        self,
        masked_share: float = 0.75,
        width: int = 96,
        depth: int = 2,
        num_heads: int = 3,
        normalise: bool = True,
    ) -> None:
        super().__init__(masked_share, width, depth, num_heads)
        self.normalise = normalise

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the decoder, whose output is the pixels of a patch."""
        self.make_decoder(sizes, 0 if sizes.patch_size is None else math.prod(sizes.patch_size) * 3)
        assert sizes.patch_size is not None, "make_decoder refuses a model without it"
        self.patch_size = sizes.patch_size

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of masked patches and, with ``normalise``, float64[]: the sum of their targets' variances."""
        counts = {"patches": self.num_masked(batch)}
        if not self.normalise:
            return counts
        # No forward pass has run yet: draw the same patches that it will see.
        masked = other_patches(self.kept(batch, step_key), len(self.positions))
        # A normalised target has the variance v / (v + 1e-6), which is about 1 or, for a patch of one colour, 0.
        _, variance = statistics_of(self._pixels(batch.images, masked))
        return {**counts, "variance": (variance / (variance + FLAT)).sum()}

    def _pixels(self, images: Tensor, masked: Tensor) -> Tensor:
        """uint8[B, 3, S, S], int64[B, M] -> uint8[B, M, H * W * 3]: the pixels of those patches."""
        return patches_of(images, self.patch_size).take_along_dim(masked[:, :, None], dim=1)

    def targets(self, images: Tensor, masked: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8[B, 3, S, S], int64[B, M] -> ``dtype``[B, M, H * W * 3]: the targets of those patches."""
        pixels = self._pixels(images, masked)
        target = pixels.to(dtype) / 255
        if not self.normalise:
            return target
        mean, variance = (value[:, :, None].to(dtype) for value in statistics_of(pixels))
        return (target - mean) / (variance + FLAT).sqrt()

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """One term, and the figure ``explained`` if targets are normalised."""
        visible = output.patches[self.view]
        masked = other_patches(visible.kept, len(self.positions))
        predicted = self.predictions(visible, masked)
        target = self.targets(batch.images, masked, predicted.dtype)
        error = (predicted - target).square().mean(dim=-1).sum()
        terms = {"reconstruction": Term(error, counts["patches"].to(error.dtype))}
        if not self.normalise:
            return Loss(terms)
        explained = target.square().mean(dim=-1).sum() - error.detach()
        return Loss(terms, {"explained": Term(explained, counts["variance"].to(error.dtype))})
