"""How many FLOPs a second an accelerator can reach at most, by what it is called."""

import torch

from mmlm.core.computing import autocast_type
from mmlm.core.precision import Precision

_TERA = 1e12
_PEAKS: tuple[tuple[tuple[str, ...], float, float | None], ...] = (
    (("B200",), 2250, None),
    (("GH200",), 989, 67),
    (("H200",), 989, 67),
    (("H100", "PCIe"), 756, 51),
    (("H100", "NVL"), 835, 60),
    (("H100",), 989, 67),
    (("A100",), 312, 19.5),
    (("L40S",), 362, 91.6),
    (("L4",), 121, 30.3),
    (("A10",), 125, 31.2),
    (("T4",), 65, 8.1),
    (("V100", "PCIE"), 112, 14),
    (("V100",), 125, 15.7),
)
"""Words of the name, then 10^12 FLOPs a second in half precision (dense, on tensor cores) and in float32 (not TF32),
None where that is unknown: from the makers' data sheets. The first row counts whose words are all in the name."""


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOPs a second of one device in a ``precision`` that is not ``auto``; None for a CPU and what is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(name: str, precision: Precision) -> float | None:
    """FLOPs a second of an accelerator by its name, such as ``NVIDIA A100-SXM4-80GB``; None if it is not known."""
    words = name.replace("-", " ").split()
    if "MIG" in words:  # a part of a device
        return None
    for wanted, half, single in _PEAKS:
        if all(word in words for word in wanted):
            found = single if autocast_type(precision) is None else half
            return None if found is None else found * _TERA
    return None
