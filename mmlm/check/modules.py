"""What holds for every part with weights: gradients, starts by key, state there and back, eval mode, two devices."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.check.report import CLOSE, EXACT, Check, expect, expect_finite, expect_same

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class ModuleUnderTest:
    """A part with weights, which can be built again and again."""

    make: Callable[[], nn.Module]
    """A new part, in float32, whose start depends on torch's seed."""
    outputs: Callable[[nn.Module], Outputs]
    """Everything that the part makes of the same inputs, in the type of its weights, by name."""

    def new(self, seed: int = 0) -> nn.Module:
        """A new part of that seed."""
        torch.manual_seed(seed)
        return self.make()

    def stirred(self, seed: int = 0) -> nn.Module:
        """The same in float64, no weight where it started."""
        return stir(self.new(seed).double())


@torch.no_grad()
def stir(module: nn.Module, means: str = "") -> nn.Module:
    """Moves parameters away from where they start: gates, biases and masks at 0 hide mistakes. Returns the module.

    ``means`` is a prefix of buffers that are running means, and are moved too.
    """
    generator = torch.Generator().manual_seed(1)
    moved = [tensor for name, tensor in module.named_buffers() if means and name.startswith(means)]
    for parameter in (*module.parameters(), *moved):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((0.1 * noise).to(parameter.dtype))
    return module


def dtype_of(module: nn.Module) -> torch.dtype:
    """The type of a module's weights; float32 if it has none."""
    return next((parameter.dtype for parameter in module.parameters()), torch.float32)


def tolerance_of(function: Callable[[float], Tensor]) -> float:
    """How exactly results of ``function`` can be compared: some language models norm in float32 whatever their weights.

    ``function`` takes a factor for one of its inputs. A factor of nearly 1 moves a float64 result by nearly nothing,
    and a result that passed through float32 by a rounding error of that.
    """
    with torch.no_grad():
        moved = (function(1 + 1e-12) - function(1.0)).abs().max().item() if function(1.0).numel() else 0.0
    return EXACT if moved < EXACT else CLOSE


def gradients(subject: ModuleUnderTest) -> None:
    """See ``GENERAL``."""
    module = subject.stirred()
    outputs = subject.outputs(module)
    expect_finite(outputs, "look for a division by 0 or the logarithm of 0")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    total = torch.stack([output.sin().sum() for output in outputs.values()]).sum()
    expect(total.requires_grad, "nothing that it returns has a gradient", "do not detach, and do not use no_grad")
    total.backward()
    expect_gradients(dict(module.named_parameters()))


def expect_gradients(parameters: Mapping[str, nn.Parameter], part: str = "") -> None:
    """``Broken`` for the first of ``parameters`` that trains and has no gradient, or one that is 0 or not finite."""
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            reached = parameter.grad is not None and bool(parameter.grad.any())
            fix = "use it in forward, do not build it, or set requires_grad=False"
            expect(reached, f"{name} has no gradient", fix, part)
            assert parameter.grad is not None
            finite = bool(parameter.grad.isfinite().all())
            expect(finite, f"the gradient of {name} is not finite", "guard divisions and roots at 0", part)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers by name, those that no checkpoint holds included."""
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def starts_by_key(subject: ModuleUnderTest) -> None:
    """See ``GENERAL``."""
    fix = "draw with torch only (nn.init, torch.randn), from no generator of your own; NumPy and random are not seeded"
    one = subject.new()
    # Somebody else in the process draws numbers in between.
    np.random.random(7)
    random.random()
    other = subject.new()
    theirs = tensors_of(other)
    for name, tensor in tensors_of(one).items():
        expect(bool(torch.equal(tensor, theirs[name])), f"{name} starts differently the second time", fix)
    _expect_same_outputs(subject, one, other, fix)


def state_there_and_back(subject: ModuleUnderTest) -> None:
    """See ``GENERAL``."""
    one, other = subject.stirred(), subject.stirred(seed=1)
    other.load_state_dict(one.state_dict())
    fix = "make what is drawn or learned an nn.Parameter, or a buffer by register_buffer(name, tensor)"
    _expect_same_outputs(subject, one, other, fix)


def _expect_same_outputs(subject: ModuleUnderTest, one: nn.Module, other: nn.Module, fix: str) -> None:
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = subject.outputs(one.eval())
        torch.manual_seed(0)
        for name, value in subject.outputs(other.eval()).items():
            expect_same(value, wanted[name], f"{name} of the second part", fix)


def eval_is_deterministic(subject: ModuleUnderTest) -> None:
    """See ``GENERAL``."""
    module = subject.stirred().eval()
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = subject.outputs(module)
        torch.manual_seed(1)
        for name, value in subject.outputs(module).items():
            expect_same(value, wanted[name], f"{name} the second time", "use nn.Dropout, or ask self.training")


def built_without_memory(subject: ModuleUnderTest) -> None:
    """See ``GENERAL``."""
    with torch.device("meta"):
        bare = subject.new()
    fix = "leave the device to torch (no device=..., no .item() and no NumPy in the constructor)"
    shapes = {name: tuple(parameter.shape) for name, parameter in subject.new().named_parameters()}
    for name, parameter in bare.named_parameters():
        expect(parameter.is_meta, f"{name} is on {parameter.device} although torch.device('meta') is asked for", fix)
        expect(shapes.get(name) == tuple(parameter.shape), f"{name} is {list(parameter.shape)} there", fix)
    expect(len(shapes) == len(list(bare.parameters())), "there are fewer parameters there", fix)


def runs_in_bfloat16(subject: ModuleUnderTest) -> None:
    """See ``GENERAL``."""
    module = subject.new().eval()
    with torch.no_grad():
        wanted = subject.outputs(module)
        with torch.autocast("cpu", torch.bfloat16):
            low = subject.outputs(module)
    for name, value in low.items():
        fix = "make sums, norms and softmaxes of many values in float32"
        expect_same(value.float(), wanted[name].float(), f"{name} in bfloat16", fix, tolerance=0.1)


GENERAL: tuple[Check[ModuleUnderTest], ...] = (
    Check("gradients reach every parameter that trains, and none is nan", gradients),
    Check("two parts of one seed start alike, whatever else draws random numbers", starts_by_key),
    Check("its state in a part of another seed gives the same outputs", state_there_and_back),
    Check("in eval mode the same input gives the same output", eval_is_deterministic),
    Check("it can be built on the meta device", built_without_memory),
    Check("under autocast to bfloat16 the outputs are about the same", runs_in_bfloat16),
)
"""The rules for every part with weights."""
