"""Masked prediction: predicts an averaged teacher's tokens of masked patches from the visible patches."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.figure import Figure, loss_term, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.views import WHOLE_IMAGE, StepKey, View
from mmlm.objectives.objective import required
from mmlm.objectives.shared.masked_patches import MaskedPatches, other_patches


class MaskedPrediction(MaskedPatches):
    """Masked prediction of an averaged teacher's patch tokens, the other half of SigLIP 2's last phase
    (arXiv:2502.14786, after TIPS, arXiv:2410.16512)::

        target[b, n] = layer_norm(teacher_tokens(image[b])[n])
        loss = sum_{b, n masked} mean_i (prediction[b, n, i] - target[b, n, i])^2  /  masked patches of all ranks

    The teacher is the moving average of the model and sees the whole image; the student's encoder sees the visible
    patches only, and a small decoder predicts the teacher's tokens at the others.

    Where we differ: in those papers mask tokens go through the encoder, and token and target are scored against
    prototypes. Here the encoder sees no masked patch at all, and normalised tokens are predicted, as in data2vec 2.0
    (arXiv:2212.07525). These targets need no centre over the batch, so the loss is a plain sum over patches.

    Figure ``explained``: 1 - loss / mean square of the targets, the share of the targets that predictions explain; 0 if
    every prediction is 0.

    Args:
        masked_share: share of the patches that are masked.
        width, depth, num_heads: of the decoder; ``width`` is a multiple of 4, for its fixed positions.

    Raises:
        UserError: sizes out of range, or a model whose encoder cannot see some patches only.
    """

    needs_teacher = True
    needs_average = True
    figures: Mapping[str, Figure] = {
        "masked_prediction": loss_term("mean squared error of the teacher's masked tokens"),
        "explained": share_of_training(
            "explained", "share of the teacher's masked tokens that is predicted; 0 for predicting 0"
        ),
    }

    def __init__(self, masked_share: float = 0.5, width: int = 96, depth: int = 2, num_heads: int = 3) -> None:
        super().__init__(masked_share, width, depth, num_heads)

    @property
    def teacher_views(self) -> frozenset[View]:
        """The whole image, from which the targets are made."""
        return frozenset({WHOLE_IMAGE})

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the decoder, whose output has the width of the teacher's tokens."""
        self.make_decoder(sizes, sizes.patch_width)

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of masked patches."""
        return {"patches": self.num_masked(batch)}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """One term, and the figure ``explained``."""
        visible, num_patches = output.patches[self.view], len(self.positions)
        masked = other_patches(visible.kept, num_patches)
        predicted = self.predictions(visible, masked)
        # Class and register tokens, which some encoders keep, stand before the patches.
        tokens = required(required(output.teacher, "teacher").image_tokens, "image_tokens")
        tokens = tokens[:, -num_patches:].to(predicted.dtype)
        target = F.layer_norm(tokens.take_along_dim(masked[:, :, None], dim=1), tokens.shape[-1:])
        error = (predicted - target).square().mean(dim=-1).sum()
        explained = target.square().mean(dim=-1).sum() - error.detach()
        count = counts["patches"].to(error.dtype)
        return Loss({"masked_prediction": Term(error, count)}, {"explained": Term(explained, count)})
