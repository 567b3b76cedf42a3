"""A rule that a part keeps or breaks, and the line that says which."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.wording import one_line

Subject = TypeVar("Subject")

EXACT = 1e-9
"""Relative and absolute difference of two float64 results that count as equal."""
CLOSE = 1e-4
"""Likewise of results that were computed in float32 on the way."""


class Broken(Exception):  # noqa: N818 - a state of the part, caught in this file
    """Raised by a check: what was found of the part that is against the rule, and what to do about it.

    ``part`` names the part where the subject of the check has several of them; empty stands for the subject itself.
    """

    def __init__(self, found: str, fix: str, part: str = "") -> None:
        super().__init__(f"{found}; {fix}")
        self.found, self.fix, self.part = found, fix, part


class SettingsError(UserError):
    """Raised where a part cannot be built with the settings that it was given: no rule of its slot is broken."""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One rule of a slot, and the function that tries whether a part keeps it."""

    rule: str
    """The rule as a sentence without a full stop: ``gradients reach every parameter``."""
    run: Callable[[Subject], None]
    """Raises ``Broken`` if the part does not keep the rule."""


def passed(part: str, checks: Sequence[Check[Subject]], subject: Subject) -> Iterator[str]:
    """Runs the checks in order; yields ``ok  <rule>`` for each that is kept.

    At the first one that is not it raises a UserError in one line: the part, the rule, what was found, what to do.
    ``part`` is the slot with the name of the class, such as ``bridge QFormer``.
    """
    for check in checks:
        try:
            check.run(subject)
        except Broken as broken:
            name = broken.part or part
            raise UserError(f"{name}: broken rule: {check.rule}: {broken.found}; {broken.fix}") from broken
        except SettingsError:
            raise
        except UserError as error:
            raise UserError(f"{part}: broken rule: {check.rule}: it refuses its input: {error}") from error
        except Exception as error:
            raise UserError(f"{part}: broken rule: {check.rule}: it raised {raised(error)}; mend that") from error
        yield f"ok  {check.rule}"


def raised(error: BaseException) -> str:
    """What was raised, and the last line of the part's own code that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _of_others(Path(frame.filename))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"


def _of_others(file: Path) -> bool:
    """Whether a file is of a library, of the kit, or only hands on what a part asks of the other ranks."""
    return "site-packages" in file.parts or file.is_relative_to(Path(__file__).parent) or file.name == "distributed.py"


def expect(holds: bool, found: str, fix: str, part: str = "") -> None:
    """Raises ``Broken`` unless ``holds``."""
    if not holds:
        raise Broken(found, fix, part)


def expect_attributes(part: object, kinds: Mapping[str, tuple[type, ...]], protocol: str) -> None:
    """Raises ``Broken`` if the part lacks one of the attributes of its protocol, or has one of another type."""
    see = f"see class {protocol} in mmlm/model/protocols.py"
    for name, allowed in kinds.items():
        try:
            value = getattr(part, name)
        except AttributeError as error:
            raise Broken(f"it has no '{name}' ({one_line(error)})", f"set it in the constructor; {see}") from error
        words = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
        # A bool is an int to Python, and no number of tokens.
        fits = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
        expect(fits, f"'{name}' is {value!r}", f"make it {words}; {see}")


def expect_shape(tensor: object, shape: Sequence[int], name: str, meaning: str, fix: str) -> None:
    """Raises ``Broken`` unless ``tensor`` is one of this shape, which the letters of ``meaning`` stand for."""
    expect(isinstance(tensor, Tensor), f"{name} is a {type(tensor).__name__}", f"return a tensor {meaning}; {fix}")
    assert isinstance(tensor, Tensor)
    right = tuple(tensor.shape) == tuple(shape)
    expect(right, f"{name} is {list(tensor.shape)}, and {meaning} is {list(shape)} here", fix)


def expect_floating(tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raises ``Broken`` unless ``tensor`` has the type of the part's weights."""
    expect(
        tensor.dtype == dtype,
        f"{name} is {tensor.dtype} of weights that are {dtype}",
        "compute in the type of the weights, and make new tensors in it (new_zeros, torch.zeros_like)",
    )


def expect_same(found: Tensor, wanted: Tensor, what: str, fix: str, tolerance: float = EXACT, part: str = "") -> None:
    """Raises ``Broken`` unless the tensors have one shape and are equal up to ``tolerance``, relative and absolute."""
    expect(found.shape == wanted.shape, f"{what}: {list(found.shape)} against {list(wanted.shape)}", fix, part)
    if torch.allclose(found.double(), wanted.double(), rtol=tolerance, atol=tolerance):
        return
    if found.numel() == 1:
        raise Broken(f"{what}: {found.item():.6g} against {wanted.item():.6g}", fix, part)
    difference = (found.double() - wanted.double()).abs().max().item()
    raise Broken(f"{what}: differs by up to {difference:.2g}", fix, part)


def expect_finite(values: Mapping[str, Tensor], fix: str, part: str = "") -> None:
    """Raises ``Broken`` for the first tensor with a value that is nan or infinite."""
    for name, value in values.items():
        expect(bool(value.isfinite().all()), f"{name} is not finite", fix, part)
