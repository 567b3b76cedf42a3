"""The precision context: what runs in bfloat16, and that the process is left as it was found."""

import pytest
import torch
from torch import nn
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled, math_sdp_enabled, mem_efficient_sdp_enabled

from mmlm.core.precision import Precision, _speed_of_bfloat16, computing, has_bfloat16_units

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
        assert out.dtype == precision.autocast
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
    ("able", "speed", "found"),
    [
        ({"avx512_bf16", "amx_bf16"}, None, Precision.bf16),
        ({"avx512_bf16"}, 2.0, Precision.bf16),
        ({"avx512_bf16"}, 1.1, Precision.fp32),
        ({"avx512_bf16"}, 0.5, Precision.fp32),
        (set(), None, Precision.fp32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_faster_in_it(monkeypatch, able, speed, found):
    """What is known of a kind of CPU is not tried: then ``speed`` is None."""

    def tried() -> float:
        assert speed is not None
        return speed

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    monkeypatch.setattr("mmlm.core.precision._speed_of_bfloat16", tried)
    assert Precision.auto.on(CPU) is found
    assert Precision.bf16.on(CPU) is Precision.bf16
    assert has_bfloat16_units(CPU) is ("amx_bf16" in able)
    with computing(CPU, Precision.auto):
        assert torch.is_autocast_enabled("cpu") is (found is Precision.bf16)


def test_the_speed_is_tried_once():
    assert _speed_of_bfloat16() == _speed_of_bfloat16() > 0
