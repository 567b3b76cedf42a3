"""GPU kernels of optional packages for the cross-entropy of a linear layer, and the choice among them.

- Liger (``liger-kernel``, arXiv:2410.10989): chunks of rows, gradients made in the forward pass.
- Cut Cross-Entropy (``cut-cross-entropy``, arXiv:2411.09009): logits live in on-chip memory only; the backward pass
  computes them again. We use its variant ``cce_exact``, which drops no small gradients and sums in float32.
"""

from importlib import metadata
from typing import Literal

import torch
from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError
from mmlm.objectives.kernels.gradients_in_forward import LossAndGradients, NeededGradients

IGNORED = -100
"""The target of a row that has no loss."""
Chosen = Literal["chunked", "liger", "cut"]
"""The kernels there are; ``chunked`` is our own."""
Kernel = Literal["auto", "chunked", "liger", "cut"]
"""``auto``: chunked on a CPU; on a CUDA device Liger if it is installed, else Cut Cross-Entropy, else chunked."""
LIGER, CUT = "liger-kernel", "cut-cross-entropy"
LEAST_LIGER = (0, 8)
"""The first version that returns the predicted tokens, which the accuracy needs."""
HALF = (torch.bfloat16, torch.float16)


def installed(package: str) -> tuple[int, ...] | None:
    """Major and minor version of an installed package, or None."""
    try:
        return tuple(int(number) for number in metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return None


def check_kernel(kernel: Kernel, label_smoothing: float, chunk_rows: int | None) -> None:
    """Called by constructors. Raises ArgumentError for a kernel that could run on no device with these settings."""
    if chunk_rows is not None and chunk_rows < 1:
        raise ArgumentError(f"chunk_rows: {chunk_rows} must be at least 1 row")
    if kernel in ("auto", "chunked"):
        return
    if chunk_rows is not None:
        raise ArgumentError(
            f"chunk_rows: {chunk_rows} has no effect on kernel={kernel}; use kernel=chunked, or null here"
        )
    package = LIGER if kernel == "liger" else CUT
    version = installed(package)
    if version is None:
        raise ArgumentError(f"kernel: {kernel} needs a package that is not installed; pip install {package}")
    if kernel == "liger" and version < LEAST_LIGER:
        raise ArgumentError(
            f"kernel: {LIGER} {_dotted(version)} is older than {_dotted(LEAST_LIGER)}; pip install -U {LIGER}"
        )
    if kernel == "cut" and label_smoothing:
        raise ArgumentError(
            f"kernel: cut has no label smoothing, and label_smoothing is {label_smoothing}; use kernel=liger or chunked"
        )


def choose_kernel(kernel: Kernel, hidden: Tensor, label_smoothing: float) -> Chosen:
    """The kernel for the loss of ``hidden`` float[P, D]: decided by its device and dtype and by what is installed.

    ``auto`` takes a kernel only where it is exact: none for float64 inputs, and Cut Cross-Entropy for half precision
    without label smoothing only. Raises UserError for a named kernel that cannot compute this.
    """
    device, dtype = hidden.device.type, computing_dtype(hidden)
    if kernel == "chunked":
        return kernel
    if kernel == "auto":
        return _best(label_smoothing, dtype) if device == "cuda" else "chunked"
    if device != "cuda":
        raise UserError(f"kernel: {kernel} runs on CUDA devices only, and the model is on {device}; use kernel=auto")
    if not _fits(kernel, dtype):
        fix = "kernel=chunked" if dtype is torch.float64 else "train.precision=bf16 or kernel=chunked"
        raise UserError(f"kernel: {kernel} does not compute in {str(dtype).removeprefix('torch.')}; use {fix}")
    return kernel


def _best(label_smoothing: float, dtype: torch.dtype) -> Chosen:
    """The choice of ``auto`` on a CUDA device: the first kernel that is installed and exact in ``dtype``."""
    if (installed(LIGER) or (0, 0)) >= LEAST_LIGER and _fits("liger", dtype):
        return "liger"
    if installed(CUT) is not None and not label_smoothing and _fits("cut", dtype):
        return "cut"
    return "chunked"


def _fits(kernel: Chosen, dtype: torch.dtype) -> bool:
    """True if a kernel computes in ``dtype`` as exactly as ``chunked`` does: Liger's sums are float32."""
    return dtype in HALF or (kernel == "liger" and dtype is torch.float32)


def liger(
    hidden: Tensor, head_weight: Tensor, wanted: NeededGradients, targets: Tensor, label_smoothing: float
) -> LossAndGradients:
    """Liger's loss and gradients, as a ``FusedLoss``.

    Liger's own backward pass multiplies the stored gradients in place, which is wrong for a graph that is
    differentiated twice, and it makes no gradient of the head if the hidden states need none. So Liger is
    differentiated here, at once, and with hidden states that always need a gradient.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    with torch.set_grad_enabled(wanted.any):
        hidden = hidden.detach().requires_grad_(wanted.any)
        head_weight = head_weight.detach().requires_grad_(wanted.head)
        output = liger_fused_linear_cross_entropy(
            hidden,
            head_weight,
            targets,
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
            accum_dtype=torch.float32,
            return_predicted_tokens=True,
        )
    inputs = [hidden, head_weight] if wanted.head else [hidden]
    gradients = torch.autograd.grad(output.loss, inputs) if wanted.any else []
    return LossAndGradients(
        output.loss.detach(),
        (output.predicted_tokens == targets).sum(),
        gradients[0] if wanted.hidden else None,
        gradients[1] if wanted.head else None,
    )


def cut_loss(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """Cut Cross-Entropy's loss_sum float32[], with Cut's own backward pass (which stores no gradients)."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(
        hidden, head_weight, targets, ignore_index=IGNORED, reduction="sum", impl="cce_exact"
    ).float()


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a matrix product would compute in for ``tensor``: autocast leaves float64 alone."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def _dotted(version: tuple[int, ...]) -> str:
    """``(0, 8)`` -> ``0.8``."""
    return ".".join(map(str, version))
