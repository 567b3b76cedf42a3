"""Captioning: cross-entropy of each next token of a caption, given the image."""

from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.kernels.installed import Kernel, check_kernel
from mmlm.objectives.kernels.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.shared.token_prediction import Captions, TokenPrediction, counted


class Captioning(TokenPrediction):
    """Causal language modelling of the caption given the image (CoCa, arXiv:2205.01917, equation 3)::

        loss = - sum_{c, t} log p(target[c, t] | inputs[c, <= t], image) / number of real targets of all ranks

    Every real token has the same weight, whatever caption or rank it is in; the paper sums over a caption's tokens and
    averages over captions. Logits are made at real positions only, and in chunks if they are many.

    Args:
        label_smoothing: share of the target spread over the vocabulary (arXiv:1512.00567), in [0, 1).
        captions: ``all``, or only those ``with_image``, which leaves text-only captions to another objective such as
            ``LanguageModelling``.
        kernel: what computes the loss. ``auto``: on a CUDA device Liger or Cut Cross-Entropy if one of them is
            installed, else our own ``chunked``, as on a CPU. ``chunked``, ``liger`` and ``cut`` are taken in any case.
        chunk_rows: number of tokens whose logits the chunked kernel holds at once (a number makes ``auto`` take the
            chunked kernel); null is as many as fit in 64 MB, on a CPU in 4 MB, but
            not fewer than 512.

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
        """bool[C, T - 1]: true at the real targets of the captions that count."""
        return batch.target_mask & counted(batch, self.captions)[:, None]

    def cross_entropy(self, hidden: Tensor, head_weight: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """See ``TokenPrediction``; computed by ``kernel``."""
        return token_cross_entropy(hidden, head_weight, wanted, self.label_smoothing, self.kernel, self.chunk_rows)
