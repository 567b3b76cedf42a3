"""The precision context: what runs in bfloat16, and that the process is left as it was found."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled, math_sdp_enabled, mem_efficient_sdp_enabled

from mmlm.core.computing import _cpu_maker, autocast_type, computing, has_bfloat16_units, resolved
from mmlm.core.precision import Precision

CPU = torch.device("cpu")


def state() -> tuple[object, ...]:
    attention = (flash_sdp_enabled(), mem_efficient_sdp_enabled(), math_sdp_enabled(), cudnn_sdp_enabled())
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_grad_enabled(), *attention


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
def test_products_are_in_half_precision_and_parameters_and_gradients_stay_float32(precision):
    layer = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    with computing(CPU, precision):
        out = layer(x)
        assert out.dtype == autocast_type(precision)
        assert out.float().log_softmax(-1).dtype == torch.float32
        out.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), layer(x), rtol=2e-2, atol=2e-2)


def test_fp32_changes_nothing():
    before = state()
    with computing(CPU, Precision.fp32):
        assert state() == before
        assert nn.Linear(4, 3)(torch.randn(2, 4)).dtype == torch.float32
    assert state() == before


def test_bf16_on_cpu_takes_the_plain_attention_and_restores_the_choice():
    before = state()
    with computing(CPU, Precision.bf16):
        assert math_sdp_enabled()
        assert not flash_sdp_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert state() == before


def test_state_is_restored_after_an_error():
    before = state()
    with pytest.raises(ZeroDivisionError), computing(CPU, Precision.bf16):
        _ = 1 / 0
    assert state() == before


@pytest.mark.parametrize(
    ("able", "maker", "found"),
    [
        ({"avx512_bf16", "amx_bf16"}, "GenuineIntel", Precision.bf16),
        ({"avx512_bf16"}, "AuthenticAMD", Precision.bf16),
        ({"avx512_bf16"}, "GenuineIntel", Precision.fp32),
        ({"avx512_bf16"}, "", Precision.fp32),
        (set(), "AuthenticAMD", Precision.fp32),
    ],
)
def test_auto_is_bfloat16_on_the_kinds_of_cpu_that_are_faster_in_it(monkeypatch, able, maker, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    monkeypatch.setattr("mmlm.core.computing._cpu_maker", lambda: maker)
    assert resolved(Precision.auto, CPU) is found
    assert resolved(Precision.bf16, CPU) is Precision.bf16
    assert has_bfloat16_units(CPU) is ("amx_bf16" in able)
    with computing(CPU, Precision.auto):
        assert torch.is_autocast_enabled("cpu") is (found is Precision.bf16)


def test_attention_in_bfloat16_multiplies_in_bfloat16_and_is_right_to_its_precision():
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 7, 8, generator=draw).bfloat16() for _ in range(3))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    scores = (queries.double() @ keys.double().mT / 8**0.5).masked_fill(~mask, -math.inf)
    before = allowed()
    with computing(CPU, Precision.bf16):
        assert allowed()
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    assert allowed() is before
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ values.double(), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", "AuthenticAMD"),
        ("processor : 0\nBogoMIPS : 50.00\nCPU implementer : 0x41\n", ""),
        (None, ""),
    ],
)
def test_the_maker_of_the_cpu_is_read_from_what_linux_says(tmp_path, monkeypatch, text, maker):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr("mmlm.core.computing._CPU_INFO", tmp_path / "cpuinfo")
    assert _cpu_maker.__wrapped__() == maker
