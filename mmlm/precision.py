"""Numeric precision of forward and backward; parameters and optimizer state stay float32."""

import enum
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: half precision is too little for softmaxes and similarities."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Precision(enum.Enum):
    """What matrix products are computed in."""

    fp32 = "float32"
    bf16 = "bfloat16 by autocast"


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context for forward and backward.

    On CPU, bfloat16 attention takes the plain product-and-softmax path: the backward of PyTorch's flash attention is
    about ten times slower in bfloat16 than in float32 there (measured with 2.14: 12.8 against 1.0 ms a call at 128
    sequences of 16 tokens), enough to make bfloat16 training slower than float32.
    """
    with ExitStack() as stack:
        if precision is Precision.bf16:
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            if device.type == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
