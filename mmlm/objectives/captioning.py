"""Captioning: cross-entropy of each next token."""

from torch import Tensor

from mmlm.core.flow import CAPTION, Batch, StepKey
from mmlm.objectives.kernels.installed import Kernel, check_kernel
from mmlm.objectives.kernels.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.shared.token_prediction import Captions, TokenPrediction, counted


class Captioning(TokenPrediction):
    """Causal language modelling of the caption given the image (CoCa, arXiv:2205.01917, equation 3)::

        loss = - sum_{c, t} log p(target[c, t] | inputs[c, <= t], image) / number of real targets of all ranks

    Every real token weighs the same, whatever caption or rank it is in; the paper sums over a caption's tokens and
    averages over captions. Logits exist at real positions only, and never all at once if they are many.

    Args:
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).
        captions: ``all``, or those ``with_image``: text-only captions are then left to another objective, such as
            ``LanguageModelling``.
        kernel: what computes the loss. ``auto``: on a CUDA device Liger or Cut Cross-Entropy if one is installed, else
            our own ``chunked``, as on a CPU. ``chunked``, ``liger`` and ``cut`` insist.
        chunk_rows: tokens whose logits the chunked kernel holds at once (``auto`` then takes it); null is as many as
            fit in 64 MB.

    Raises:
        UserError: a setting out of its range, or a kernel that is not installed or cannot do this.
    """

    view, term = CAPTION, "captioning"

    def __init__(
        self,
        label_smoothing: float = 0.0,
        captions: Captions = "all",
        kernel: Kernel = "auto",
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(label_smoothing)
        check_kernel(kernel, label_smoothing, chunk_rows)
        self.captions, self.kernel, self.chunk_rows = captions, kernel, chunk_rows

    def chosen(self, batch: Batch, step_key: StepKey) -> Tensor:
        """bool[C, T - 1]: the real targets of the captions that count."""
        return batch.target_mask & counted(batch, self.captions)[:, None]

    def cross_entropy(self, hidden: Tensor, head_weight: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """By the kernel that was chosen."""
        return token_cross_entropy(hidden, head_weight, wanted, self.label_smoothing, self.kernel, self.chunk_rows)
