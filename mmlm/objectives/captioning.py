"""Captioning: cross-entropy of each next token."""

from collections.abc import Mapping

from torch import Tensor

from mmlm.errors import UserError
from mmlm.flow import CAPTION, Batch, Loss, ModelOutput, Moment, Term
from mmlm.objectives.cross_entropy_kernels import Kernel, check_kernel
from mmlm.objectives.linear_cross_entropy import token_cross_entropy
from mmlm.objectives.objective import Objective
from mmlm.objectives.text_positions import Captions, counted, states_at


class Captioning(Objective):
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

    views = frozenset({CAPTION})

    def __init__(
        self,
        label_smoothing: float = 0.0,
        captions: Captions = "all",
        kernel: Kernel = "auto",
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing: {label_smoothing} must lie in [0, 1)")
        check_kernel(kernel, label_smoothing, chunk_rows)
        self.label_smoothing, self.captions = label_smoothing, captions
        self.kernel, self.chunk_rows = kernel, chunk_rows

    def _chosen(self, batch: Batch) -> Tensor:
        """bool[C, T - 1]: the targets that count."""
        return batch.target_mask & counted(batch, self.captions)[:, None]

    def counts(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The supervised tokens."""
        return {"tokens": self._chosen(batch).sum()}

    def forward(self, output: ModelOutput, batch: Batch, moment: Moment, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] -> one term and the figure ``accuracy`` (share of tokens predicted right)."""
        chosen = self._chosen(batch)
        hidden = states_at(output.hidden[CAPTION], batch, chosen)
        losses, correct = token_cross_entropy(
            hidden, output.head_weight, batch.targets[chosen], self.label_smoothing, self.kernel, self.chunk_rows
        )
        count = counts["tokens"].to(losses.dtype)
        term = Term(losses, count, of_tokens=self.label_smoothing == 0)
        return Loss({"captioning": term}, {"accuracy": Term(correct, count)})
