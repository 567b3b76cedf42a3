"""Numeric precision of forward and backward; parameters and optimizer state stay float32."""

import functools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmlm.core.precision import Precision

_CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says who made the CPU."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64. For softmaxes and similarities, which half precision spoils."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def resolved(precision: Precision, device: torch.device) -> Precision:
    """``precision`` for a device: ``auto`` is bf16 on hardware that is known to multiply faster in it, else fp32."""
    if precision is not Precision.auto:
        return precision
    return Precision.bf16 if is_faster_in_bfloat16(device) else Precision.fp32


def autocast_type(precision: Precision) -> torch.dtype | None:
    """The type for ``torch.autocast``; None for no autocast. ``auto`` has to be ``resolved`` first."""
    return {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(precision)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device has units for bfloat16 products: a GPU that does not emulate them, or a CPU with AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def is_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether the device is of a kind that is known to train faster in bfloat16 than in float32.

    The answer depends on what the hardware is and on nothing that is measured, so it is the same on all ranks, after a
    restart and beside other work. Many CPUs support bfloat16 but are slower in it. Of those with AVX-512 BF16 and no
    AMX, AMD's (Zen 4 and later) have products 2.3 times as fast, and another that was measured 0.55 times: only AMD's
    count.
    """
    if has_bfloat16_units(device):
        return True
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16")) and _cpu_maker() == "AuthenticAMD"


@functools.cache
def _cpu_maker() -> str:
    """Who made the CPU, such as ``AuthenticAMD``; empty where the operating system does not say."""
    try:
        found = re.search(
            r"^vendor_id\s*:\s*(\S+)", _CPU_INFO.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
    except OSError:
        return ""
    return found[1] if found else ""


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context for forward and backward passes in ``precision`` (``auto`` is resolved for ``device``).

    On CPU, attention in half precision takes the plain product-and-softmax path: the backward of PyTorch's flash
    attention is about ten times slower in bfloat16 than in float32 there (measured with 2.14: 12.8 against 1.0 ms a
    call at 128 sequences of 16 tokens), enough to make bfloat16 training slower than float32. The plain path's two
    products are in half precision too, as they are in flash attention; PyTorch would make them float32 otherwise.
    """
    dtype = autocast_type(resolved(precision, device))
    with ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype))
            if device.type == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(_attention_products_in_half_precision())
        yield


@contextmanager
def _attention_products_in_half_precision() -> Iterator[None]:
    """The plain path of attention multiplies in the type of its inputs. PyTorch's flag for it serves the CPU too."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


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
