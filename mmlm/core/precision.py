"""Numeric precision of forward and backward; parameters and optimizer state stay float32."""

import enum
import functools
import math
import time
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
        """This one; for ``auto``, bf16 where the device multiplies faster in it, and fp32 elsewhere.

        Many CPUs know bfloat16 and are slower in it. Those with AMX are faster; with AVX-512 BF16 some are and some are
        not (2.3 times and 0.55 times as fast, measured on two), so there it is tried, once in a process: a run has to
        write down what came of it (``precision_of_run``).
        """
        if self is not Precision.auto:
            return self
        fast = has_bfloat16_units(device) or (device.type == "cpu" and _is_tried_and_faster())
        return Precision.bf16 if fast else Precision.fp32

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that autocast computes products in; None: there is no autocast. Of ``auto``, ask ``on`` first."""
        return {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(self)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether it is known of a device that it multiplies faster in bfloat16: the same on all devices of a kind."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


_WORTH_IT = 1.5
"""Times as fast as in float32 that products have to be; a training step, not all of which is products, gains less."""


def _is_tried_and_faster() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and _speed_of_bfloat16() > _WORTH_IT


@functools.cache
def _speed_of_bfloat16() -> float:
    """How many times as fast as in float32 this CPU multiplies in bfloat16; takes about a tenth of a second."""
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    factors = {dtype: (torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)) for dtype in fastest}
    for _ in range(8):  # in turns, and the best of each: other processes may get in between
        for dtype, (first, second) in factors.items():
            begun = time.perf_counter()
            first @ second
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - begun)
    return fastest[torch.float32] / fastest[torch.bfloat16]


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
