"""One pass of a part that has no weights: on the meta device or, where its code reads values, on a copy of zeros."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from mmlm.core.errors import UserError
from mmlm.core.wording import first_line

Made = TypeVar("Made")

_MOST_PARAMETERS = 30_000_000
"""The largest part that is copied as zeros: 120 MB, which take 0.1 seconds to fill and to read."""
_ABOUT_THE_DEVICE = ("meta", "cuda", "triton")
"""Words of errors that tell of the device that a part was tried on, and not of the part."""


def tried(part: object, name: str, run: Callable[[torch.device], Callable[[nn.Module], Made]]) -> Made | None:
    """What ``run(device)(part)`` makes of a copy of ``part`` on that device, in eval mode; None if it cannot be tried.

    The meta device has shapes and no values, so a pass costs neither memory nor arithmetic. Code whose shapes depend on
    values (packed captions, say) fails there. A small part is then run on the CPU with all of its weights 0. A large
    one is not, since that would take as much memory as the part itself: it is not refused for what it cannot show here.

    ``name`` heads messages. Raises UserError for a pass that fails by the part's own fault.
    """
    if not isinstance(part, nn.Module):
        return None
    meta, cpu = torch.device("meta"), torch.device("cpu")
    try:
        there = copy.deepcopy(part).eval().to(meta)  # a library may have put some of its buffers elsewhere
        with torch.no_grad(), meta:
            return run(meta)(there)
    except UserError:
        raise
    except Exception:  # whatever it says, the same pass over values says it better
        if sum(parameter.numel() for parameter in part.parameters()) > _MOST_PARAMETERS:
            return None
    try:
        here = _as_zeros(part)
    except Exception:  # not every module can be copied
        return None
    try:
        with torch.no_grad(), cpu:
            return run(cpu)(here)
    except UserError:
        raise
    except NotImplementedError:  # a kernel that the CPU does not have
        return None
    except Exception as error:
        said = first_line(error)
        if any(word in said.lower() for word in _ABOUT_THE_DEVICE):
            return None
        raise UserError(
            f"{name} fails in a pass of its own ({type(error).__name__}: {said}); compare it with the protocol of its "
            "slot in mmlm/model/protocols.py"
        ) from error


@torch.no_grad()
def _as_zeros(part: nn.Module) -> nn.Module:
    """A copy of ``part`` on the CPU in eval mode whose parameters and buffers are all 0: a valid index, if one is."""
    here = copy.deepcopy(part).eval().to_empty(device="cpu")
    for tensor in (*here.parameters(), *here.buffers()):
        tensor.zero_()
    return here
