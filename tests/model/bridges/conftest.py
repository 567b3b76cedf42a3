"""The sums that a bridge is made of, written out plainly, and random patches and parameters to try them on."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.model.attention import MultiHeadAttention

NUM_IMAGES = 3


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.T + layer.bias


def _attend(attention: MultiHeadAttention, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    both = _linear(memory, attention.key_value)
    width, size = both.shape[-1] // 2, attention.head_width
    query, key, value = _linear(x, attention.query), both[:, :width], both[:, width:]
    outputs, maps = [], []
    for q in range(len(x)):
        heads, weights_of_heads = [], []
        for h in range(width // size):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[q, part] @ key[n, part] for n in range(len(memory))]) / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum()
            weights_of_heads.append(weights.detach())
            heads.append(sum(weights[n] * value[n, part] for n in range(len(memory))))
        outputs.append(_linear(torch.cat(heads), attention.output))
        maps.append(torch.stack(weights_of_heads))
    return torch.stack(outputs), torch.stack(maps, dim=1)


def _feed_forward(x: Tensor, layers: nn.Sequential) -> Tensor:
    return _linear(F.gelu(_linear(x, layers[0])), layers[2])


@pytest.fixture
def layer_norm() -> Callable[[Tensor, nn.LayerNorm], Tensor]:
    """``layer_norm(x, norm)`` by its formula."""
    return _layer_norm


@pytest.fixture
def attend() -> Callable[[MultiHeadAttention, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``attend(attention, x, memory)`` of one image, query by query and head by head.

    float64[Q, D] over float64[N, Dm] -> outputs float64[Q, D] and weights float64[H, Q, N].
    """
    return _attend


@pytest.fixture
def two_layers() -> Callable[[Tensor, nn.Sequential], Tensor]:
    """``two_layers(x, layers)``: linear, GELU, linear."""
    return _feed_forward


@pytest.fixture
def make_patches() -> Callable[..., Tensor]:
    """``make_patches(num_patches, width, seed=0)``: random float64[3, N, D]."""

    def make(num_patches: int, width: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(NUM_IMAGES, num_patches, width, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    """``randomise(bridge, scale=1.0)``: in float64, all parameters random: nothing hides behind a zero or a one."""

    def random(bridge: nn.Module, scale: float = 1.0) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        bridge.double()
        with torch.no_grad():
            for parameter in bridge.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
        return bridge

    return random


@pytest.fixture
def assert_same_gradients() -> Callable[..., None]:
    """``assert_same_gradients(ours, theirs, inputs)``: of a random sum of each pair of outputs, to every input."""

    def check(ours: list[Tensor], theirs: list[Tensor], inputs: list[Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in ours]
        sums = [sum((out * w).sum() for out, w in zip(outs, weights, strict=True)) for outs in (ours, theirs)]
        for one, other in zip(*(torch.autograd.grad(total, inputs) for total in sums), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)

    return check
