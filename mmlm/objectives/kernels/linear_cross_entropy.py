"""Cross-entropy of tokens from hidden states, without ever holding all of their logits."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.computing import at_least_float32
from mmlm.objectives.kernels.gradients_in_forward import LossAndGradients, NeededGradients, with_known_gradients
from mmlm.objectives.kernels.installed import IGNORED, Kernel, choose_kernel, computing_dtype, cut_loss, liger

ROW_MULTIPLE = 64
"""The number of rows of logits is rounded up to a multiple of this, so that GPU kernels are run with few shapes."""
CHUNK_ELEMENTS = 2**24
"""The most logits of a chunk; each takes 4 bytes, and 2 more under bfloat16. Smaller chunks save memory and take more
time, because each chunk adds to the gradient of the head, which is as large as the head: at V = 49,408 in bfloat16 half
as many logits cost a quarter more time."""
PLAIN_ELEMENTS = 2**23
"""Up to this number of logits PyTorch's own loss is used, which is as fast and holds about three copies of them."""
CPU_ROWS, CPU_ELEMENTS = 512, 2**20
"""On a CPU a chunk has the larger of these two sizes at most: 4 MB of logits stay in its cache. Fewer rows than that
would let the sums of the head's gradient cost more than the cache saves. At 3,200 tokens and V = 2,048 in bfloat16 the
loss and its gradients took 0.62 times as long as PyTorch's own loss, at V = 8,192 0.85 times."""


def token_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    kernel: Kernel = "auto",
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy that every objective on tokens calls: summed over positions, with the number of right
    predictions.

    Value and arguments are those of ``linear_cross_entropy``; ``kernel`` names what computes it. Raises UserError for a
    kernel that cannot run here (see ``choose_kernel``).
    """
    chosen = choose_kernel(kernel, hidden, label_smoothing)
    if chosen == "chunked" or chunk_rows is not None or len(targets) == 0:
        return linear_cross_entropy(hidden, head_weight, targets, label_smoothing, chunk_rows)
    if chosen == "liger":
        return with_known_gradients(
            partial(liger, targets=targets, label_smoothing=label_smoothing), hidden, head_weight
        )
    with torch.no_grad():  # Cut Cross-Entropy does not return its predictions: they cost one more matrix product
        _, correct = linear_cross_entropy(hidden, head_weight, targets)
    return cut_loss(hidden, head_weight, targets), correct


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of all positions, and how many targets are predicted right.

    For logits ``z[p] = hidden[p] @ head_weight.T``, targets ``y[p]`` and label smoothing ``s`` (arXiv:1512.00567)::

        loss_sum = sum_p  logsumexp(z[p]) - (1 - s) z[p, y[p]] - s mean_v z[p, v]
        correct  = | {p : argmax z[p] = y[p]} |

    Rows are taken a chunk at a time. The gradient with respect to a chunk's logits, ``softmax(z[p]) - (1 - s)
    onehot(y[p]) - s / V``, is turned into the gradients of the inputs at once (as in Liger, arXiv:2410.10989), so
    neither the ``[P, V]`` logits nor their gradient ever exist as a whole. Matrix products are in the precision of
    autocast; all else, sums over chunks included, is in at least float32. A batch that fits a chunk
    and ``PLAIN_ELEMENTS`` is computed by PyTorch's ``linear`` and ``cross_entropy``.

    Args:
        hidden: float[P, D].
        head_weight: float[V, D].
        targets: int64[P]; a row with the target ``IGNORED`` has no loss and is never right.
        label_smoothing: s, in [0, 1).
        chunk_rows: rows of a chunk; None is ``default_rows``.

    Returns:
        ``loss_sum`` float32[] (float64 of float64 inputs), with gradient, and ``correct`` int64[].
    """
    filler = -len(targets) % ROW_MULTIPLE
    hidden = F.pad(hidden, (0, 0, 0, filler))
    targets = F.pad(targets, (0, filler), value=IGNORED)
    rows = chunk_rows or default_rows(len(head_weight), hidden.device)
    if len(targets) <= (chunk_rows or min(rows, PLAIN_ELEMENTS // len(head_weight))):
        return _plain(hidden, head_weight, targets, label_smoothing)
    rows = min(rows, len(targets))
    compute = partial(_chunked, targets=targets, label_smoothing=label_smoothing, rows=rows)
    return with_known_gradients(compute, hidden, head_weight)


@torch.no_grad()
def token_losses(hidden: Tensor, head_weight: Tensor, targets: Tensor, chunk_rows: int | None = None) -> Tensor:
    """The cross-entropy of each row, float32[P] (float64 of float64 inputs), without gradient; arguments as above."""
    hidden, head_weight = _operands(hidden, head_weight)
    rows = chunk_rows or default_rows(len(head_weight), hidden.device)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.cat(
            [
                F.cross_entropy(
                    at_least_float32(F.linear(part, head_weight)), wanted, reduction="none", ignore_index=IGNORED
                )
                for part, wanted in chunks
            ]
        )


def default_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of a chunk, a multiple of ``ROW_MULTIPLE``: as many as make ``CHUNK_ELEMENTS`` logits; fewer on a CPU."""
    rows = CHUNK_ELEMENTS // vocab_size
    if device.type == "cpu":
        rows = min(rows, max(CPU_ROWS, CPU_ELEMENTS // vocab_size))
    return max(1, rows // ROW_MULTIPLE) * ROW_MULTIPLE


def _plain(hidden: Tensor, head_weight: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss from all logits at once, differentiated by autograd."""
    logits = at_least_float32(F.linear(hidden, head_weight))
    losses = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=label_smoothing)
    return losses, (logits.detach().argmax(dim=-1) == targets).sum()


def _chunked(
    hidden: Tensor, head_weight: Tensor, wanted: NeededGradients, targets: Tensor, label_smoothing: float, rows: int
) -> LossAndGradients:
    """The loss of all rows and its gradients, a chunk at a time; all chunks share the same buffers."""
    given = hidden.dtype, head_weight.dtype
    hidden, head_weight = _operands(hidden, head_weight)
    real = targets != IGNORED
    # Rows without a target get zero states, which add nothing to the head's gradient, whatever their logits' gradient.
    # Their target becomes 0 only to be a valid index.
    hidden = hidden.masked_fill(~real[:, None], 0)
    targets = targets.where(real, 0)
    # narrow: the logits of a chunk in the product's precision; wide: the same in at least float32 for the softmax,
    # which is the same tensor if the product is that precise already.
    narrow = hidden.new_empty(rows, len(head_weight))
    wide = at_least_float32(narrow)
    losses, right = wide.new_zeros(len(hidden)), torch.zeros_like(real)
    gradients = _Gradients(hidden, head_weight, wanted, wide.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), rows):
            at = slice(start, min(start + rows, len(hidden)))
            product = torch.mm(hidden[at], head_weight.T, out=narrow[: at.stop - start])
            logits = product if wide is narrow else wide[: at.stop - start].copy_(product)
            losses[at], right[at] = _score(logits, targets[at], label_smoothing, differentiate=wanted.any)
            if wanted.any:
                # _score has overwritten the logits by their gradient; the products that follow take it in narrow again.
                gradients.add(at, logits if wide is narrow else product.copy_(logits))
    return LossAndGradients(
        (losses * real).sum(),
        (right & real).sum(),
        None if gradients.hidden is None else gradients.hidden.masked_fill_(~real[:, None], 0).to(given[0]),
        None if gradients.head is None else gradients.head.to(given[1]),
    )


class _Gradients:
    """The gradients of the hidden states and the head, to which every chunk adds. The head's is summed in ``wide``."""

    def __init__(self, hidden: Tensor, head_weight: Tensor, wanted: NeededGradients, wide: torch.dtype) -> None:
        self._inputs = hidden, head_weight
        self.hidden = torch.empty_like(hidden) if wanted.hidden else None
        self.head = torch.zeros_like(head_weight, dtype=wide) if wanted.head else None
        # A product in half precision needs a buffer of its own before it is added to the wide sum.
        narrower = wanted.head and wide != head_weight.dtype
        self._head_product = torch.empty_like(head_weight) if narrower else None

    def add(self, at: slice, of_logits: Tensor) -> None:
        """Adds a chunk: rows ``at``, whose loss has the gradient float[R, V] with respect to their logits."""
        hidden, head_weight = self._inputs
        if self.hidden is not None:
            torch.mm(of_logits, head_weight, out=self.hidden[at])
        if self.head is not None and self._head_product is not None:
            self.head += torch.mm(of_logits.T, hidden[at], out=self._head_product)
        elif self.head is not None:
            self.head.addmm_(of_logits.T, hidden[at])


def _score(logits: Tensor, targets: Tensor, label_smoothing: float, differentiate: bool) -> tuple[Tensor, Tensor]:
    """The losses float32[R] of ``logits`` float32[R, V], and bool[R], true for rows predicted right.

    ``logits`` is overwritten, with ``differentiate`` by the gradient of the losses with respect to it: a chunk of
    logits is the largest tensor there is, and a second one would double the memory.
    """
    largest, best = logits.max(dim=-1, keepdim=True)
    aim = targets[:, None]
    logits -= largest  # now every exponential is at most 1
    at_target = logits.gather(1, aim)
    expected = at_target
    if label_smoothing:
        expected = (1 - label_smoothing) * at_target + label_smoothing * logits.mean(dim=-1, keepdim=True)
    total = logits.exp_().sum(dim=-1, keepdim=True)
    if differentiate:
        logits /= total  # the softmax, of which the smoothed target is subtracted
        logits[torch.arange(len(logits), device=logits.device), targets] -= 1 - label_smoothing
        if label_smoothing:
            logits -= label_smoothing / logits.shape[1]
    return (total.log() - expected).squeeze(1), best.squeeze(1) == targets


def _operands(*tensors: Tensor) -> list[Tensor]:
    """The tensors as a matrix product takes them under autocast, each converted once."""
    return [tensor.to(computing_dtype(tensor)) for tensor in tensors]
