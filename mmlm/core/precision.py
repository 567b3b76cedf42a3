"""Numeric precision of forward and backward; parameters and optimizer state stay float32."""

import enum
import functools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64. For softmaxes and similarities, which half precision spoils."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Precision(enum.Enum):
    """The type in which matrix products are computed."""

    auto = "the faster one of bfloat16 and float32"
    fp32 = "float32"
    bf16 = "bfloat16 by autocast"
    fp16 = "float16 by autocast"

    def on(self, device: torch.device) -> "Precision":
        """Resolves ``auto`` for a device: bf16 where the device multiplies faster in it, else fp32.

        Many CPUs support bfloat16 but are slower in it than in float32. CPUs with AMX are faster. Of CPUs with AVX-512
        BF16 some are faster and some slower (2.3 times and 0.55 times as fast, measured on two); there both types are
        timed, once in a process. Timing may come out differently after a restart, so a run records the result
        (``precision_of_run``).
        """
        if self is not Precision.auto:
            return self
        fast = has_bfloat16_units(device) or (device.type == "cpu" and _is_tried_and_faster())
        return Precision.bf16 if fast else Precision.fp32

    @property
    def autocast(self) -> torch.dtype | None:
        """The type for ``torch.autocast``; None for no autocast. ``auto`` has to be resolved by ``on`` first."""
        return {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(self)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device has hardware for bfloat16 products that is known to be faster than float32.

    The answer is the same for all devices of a kind, hence on all ranks and after a restart.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # CPUs with AVX-512 BF16 only are not counted: they differ, see `Precision.on`.
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


_WORTH_IT = 1.5
"""How many times as fast products must be in bfloat16 to choose it; a training step gains less than its products do."""


def _is_tried_and_faster() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and _speed_of_bfloat16() > _WORTH_IT


@functools.cache
def _speed_of_bfloat16() -> float:
    """How many times as fast this CPU multiplies in bfloat16 as in float32; measuring takes about 0.1 seconds."""
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    factors = {dtype: (torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)) for dtype in fastest}
    for _ in range(8):  # in turns, keeping the best of each: other processes may interfere
        for dtype, (first, second) in factors.items():
            begun = time.perf_counter()
            first @ second
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - begun)
    return fastest[torch.float32] / fastest[torch.bfloat16]


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context for forward and backward passes in ``precision`` (``auto`` is resolved for ``device``).

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


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """A context in which float32 products are exact float32: no autocast, no TF32, no bf16 inside of kernels.

    Afterwards the precision is what the process had chosen before.
    """
    mkldnn: Any = torch.backends.mkldnn  # torch adds ``matmul`` when it is imported, where a type checker cannot see it
    backends = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
