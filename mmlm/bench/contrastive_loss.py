"""The contrastive losses that ``mmlm.bench.losses`` measures: forward and backward on random embeddings.

Each public function makes embeddings of ``width`` numbers for ``batch_size`` images with one caption each, and returns
the work to measure. Its arguments are strings, since it is called from a command line in a process of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.bench.process import Work
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.objective import Comparison
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.sigmoid import Sigmoid


def info_nce(batch_size: str, width: str, device: str) -> Work:
    """mmlm's InfoNCE as training calls it, the search for positives included."""
    return _ours(InfoNCE(), batch_size, width, device)


def sigmoid(batch_size: str, width: str, device: str) -> Work:
    """mmlm's sigmoid loss as training calls it, the search for positives included."""
    return _ours(Sigmoid(), batch_size, width, device)


def clip_loss(batch_size: str, width: str, device: str) -> Work:
    """open_clip's InfoNCE."""
    from open_clip.loss import ClipLoss

    loss, scale = ClipLoss(), InfoNCE().to(device).logit_scale
    image, text = _embeddings(batch_size, width, device)
    return lambda: torch.autograd.grad(loss(image, text, scale.exp()), [image, text, scale])


def siglip_loss(batch_size: str, width: str, device: str) -> Work:
    """open_clip's sigmoid loss."""
    from open_clip.loss import SigLipLoss

    loss, parameters = SigLipLoss(), Sigmoid().to(device)
    scale, bias = parameters.logit_scale, parameters.logit_bias
    image, text = _embeddings(batch_size, width, device)
    return lambda: torch.autograd.grad(loss(image, text, scale.exp(), bias), [image, text, scale, bias])


def _ours(objective: Comparison, batch_size: str, width: str, device: str) -> Work:
    objective = objective.to(device)
    image, text = _embeddings(batch_size, width, device)
    rows = torch.arange(len(image), device=device)
    keys = Keys(rows, rows, rows, rows)
    inputs = [image, text, *objective.parameters()]
    return lambda: torch.autograd.grad(objective.compare(image, text, keys).total, inputs)


def _embeddings(batch_size: str, width: str, device: str) -> tuple[Tensor, Tensor]:
    """Image and text embeddings float32[B, E] of unit length, with gradient; equal for equal arguments."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, int(batch_size), int(width), generator=generator)
    image, text = F.normalize(both, dim=-1).to(device)
    return image.clone().requires_grad_(), text.clone().requires_grad_()
