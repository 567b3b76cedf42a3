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

    auto = "the faster one of bfloat16 and float32"
    fp32 = "float32"
    bf16 = "bfloat16 by autocast"
    fp16 = "float16 by autocast"

    def on(self, device: torch.device) -> "Precision":
        """This one; for ``auto``, bf16 where the device has units that multiply in it, and fp32 elsewhere.

        Many CPUs know bfloat16 and multiply in it half as fast as in float32 (0.55 times on one with AVX-512 BF16); of
        x86 CPUs those with AMX are faster.
        """
        if self is not Precision.auto:
            return self
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
        return Precision.bf16 if fast else Precision.fp32

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that autocast computes products in; None: there is no autocast. Of ``auto``, ask ``on`` first."""
        return {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(self)


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context for forward and backward.

    On CPU, attention in half precision takes the plain product-and-softmax path: the backward of PyTorch's flash
    attention is about ten times slower in bfloat16 than in float32 there (measured with 2.14: 12.8 against 1.0 ms a
    call at 128 sequences of 16 tokens), enough to make bfloat16 training slower than float32.
    """
    precision = precision.on(device)
    with ExitStack() as stack:
        if precision.autocast is not None:
            stack.enter_context(torch.autocast(device.type, precision.autocast))
            if device.type == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
