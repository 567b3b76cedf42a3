"""Transformer parts for bridges, decoders and text encoders: positions, feed-forward, norms, initial weights."""

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_counts, check_ratio
from mmlm.model.attention import MultiHeadAttention

INIT_STD = 0.02
"""Initial standard deviation of embeddings, learned queries and positions (GPT-2)."""


def sinusoidal_positions(num_positions: int, width: int) -> Tensor:
    """float32[num_positions, width]: sine and cosine positions (arXiv:1706.03762, section 3.5), sines first.

    The paper interleaves sine and cosine; a fixed permutation of the columns changes nothing a linear layer can see.
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angles = torch.arange(num_positions)[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def rotate(x: Tensor, offset: int = 0, base: float = 10_000.0) -> Tensor:
    """Applies rotary positions (RoFormer, arXiv:2104.09864) to queries or keys float[C, H, T, d], d even.

    The first token has position ``offset``. Pairs column i with column i + d/2, as GPT-NeoX and Llama do; the paper
    pairs neighbours.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    positions = torch.arange(offset, offset + x.shape[2], device=x.device, dtype=torch.float32)
    angles = positions[:, None] * frequencies[None, :]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class FeedForward(nn.Sequential):
    """Linear, GELU, linear: float[..., D] -> float[..., D] through ``mlp_ratio * D`` hidden units."""

    def __init__(self, width: int, mlp_ratio: float = 4.0, out_width: int | None = None) -> None:
        hidden = int(width * mlp_ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out_width or width))

    @property
    def output(self) -> nn.Linear:
        """The layer that writes into the residual stream."""
        return cast(nn.Linear, self[-1])


class SwiGlu(nn.Module):
    """Gated feed-forward (SwiGLU, arXiv:2002.05202): ``output(silu(gate(x)) * up(x))``, float[..., D] -> same.

    As in the paper without biases, and with two thirds of ``mlp_ratio * D`` hidden units, since there are three
    matrices where ``FeedForward`` has two: the number of weights is the same.
    """

    def __init__(self, width: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio * 2 / 3)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.output(F.silu(gate) * up)


class RmsNorm(nn.RMSNorm):
    """``x / rms(x) * weight`` (arXiv:1910.07467), in the dtype of ``x``.

    Differs from ``nn.RMSNorm``: epsilon is 1e-6 in every dtype; the weight is cast to the dtype of ``x``. Under
    autocast ``x`` is bfloat16 and the weight float32, for which PyTorch has no fused kernel and warns.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


FeedForwardKind = Literal["gelu", "swiglu"]
FEED_FORWARDS: Mapping[FeedForwardKind, type[FeedForward | SwiGlu]] = {"gelu": FeedForward, "swiglu": SwiGlu}
Norm = Literal["layer_norm", "rms_norm"]
NORMS: Mapping[Norm, type[nn.LayerNorm | RmsNorm]] = {"layer_norm": nn.LayerNorm, "rms_norm": RmsNorm}


def init_linears(module: nn.Module, num_residual_layers: int | None = None) -> None:
    """Initialises every linear layer and embedding inside, each keyed by its name in ``module`` (``keyed_start``).

    Linear weights are normal with variance 1 / inputs, so that signals keep their size at any width (GPT-2's fixed
    0.02 equals that at a width of 2,500, and shrinks signals in narrower layers). Biases are 0, embeddings
    normal(0, 0.02). With ``num_residual_layers``, the weights of layers that write into a residual stream (attention
    output, last layer of a feed-forward) are divided by its square root, so that the stream's variance does not grow
    with depth (GPT-2).
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.Embedding | nn.Linear):
            continue
        # By name, so that a layer more or another kind of sub-layer leaves the weights of all others as they are.
        with keyed_start(name):
            nn.init.normal_(part.weight, std=INIT_STD if isinstance(part, nn.Embedding) else part.in_features**-0.5)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    if num_residual_layers is None:
        return
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, MultiHeadAttention | FeedForward | SwiGlu):
                part.output.weight /= math.sqrt(num_residual_layers)


def check_sizes(counts: Mapping[str, int], width: int, mlp_ratio: float) -> None:
    """ArgumentError if the width or one of ``counts`` (by name) is below 1, or a feed-forward has no hidden units."""
    check_counts({**counts, "width": width})
    check_ratio("mlp_ratio", mlp_ratio, width)
