"""Reading and writing files of weights without running code from them, and matching their names with a model's."""

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError  # what torch raises on a file that would run code; nothing is unpickled here

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.wording import first_line, listed

Weights = Mapping[str, Tensor]
"""Tensors by name, as ``module.state_dict()`` gives them."""
_SUFFIX = ".safetensors"
_SHOWN = 8
"""Names of each kind of fault that a message lists."""
_REASON = 120
"""Characters of a library's own message that our message repeats."""


def save_weights(tensors: Weights, file: Path) -> None:
    """Writes a safetensors file. A tensor with two names (tied weights) is stored once, with the second name on record.

    Other tensors that share memory are stored as copies. The record is the file's only metadata: ``aliases``, a JSON
    object of second name -> first name.
    """
    unique, aliases = _untie(tensors)
    # One entry of metadata: safetensors writes several in random order, and equal weights should give equal files.
    file.touch()
    mode = file.stat().st_mode  # as the user's umask has it; safetensors makes files that nobody else can read
    save_file(unique, file, metadata={"aliases": json.dumps(aliases)})
    file.chmod(mode)


def read_weights(file: Path, nested: str | None = None) -> dict[str, Tensor]:
    """Reads the tensors of a file, on the CPU; names of a tied weight share one tensor.

    A file that ends in ``.safetensors`` is read as such. Any other file is read by ``torch.load(weights_only=True)``,
    which runs no code, and has to be a mapping of names to tensors, or a mapping in which the key ``nested`` holds one
    (a trainer's checkpoint). Raises UserError for a file that is missing, damaged or of another kind.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file of weights; give one such as model{_SUFFIX}")
    return _read_safetensors(file) if file.suffix == _SUFFIX else _read_torch(file, nested)


def match_weights(
    wanted: Weights,
    given: Weights,
    source: str,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    advice: str = "",
) -> list[str]:
    """Compares two sets of weights; returns the names of ``wanted`` (a model's) to be loaded from ``given``.

    ``missing`` has patterns (``*`` stands for anything) of names in ``wanted`` that may keep their values, because
    ``given`` lacks them or has them in another shape. ``unexpected`` has patterns of names that only ``given`` may
    have. Raises UserError for any other name without a counterpart or of another shape, listing them, and for a pattern
    that matches no such name. The message begins with ``source`` and ends with ``advice``.
    """
    absent = [name for name in wanted if name not in given]
    misshapen = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    extra = [name for name in given if name not in wanted]
    for key, patterns, names in (("missing", missing, [*absent, *misshapen]), ("unexpected", unexpected, extra)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"init_from.{key}: '{pattern}' matches no name that is {key}; remove it")
    faults = [
        _fault("missing there", _unmatched(absent, missing), repr),
        _fault("unexpected there", _unmatched(extra, unexpected), repr),
        _fault(
            "of another shape",
            _unmatched(misshapen, missing),
            lambda name: f"'{name}' is {list(given[name].shape)} there and {list(wanted[name].shape)} here",
        ),
    ]
    if any(faults):
        raise UserError(f"{source} does not fit this model: {'; '.join(filter(None, faults))}{advice}")
    return [name for name in wanted if name in given and name not in misshapen]


def copy_weights(wanted: Weights, given: Weights, source: str) -> None:
    """Copies each tensor of ``given`` into the tensor of the same name in ``wanted``, a module's ``state_dict()``.

    Raises UserError, before anything is copied, unless all names and shapes match.
    """
    for name in match_weights(wanted, given, source):
        wanted[name].copy_(given[name])


def _unmatched(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _fault(kind: str, names: Sequence[str], describe: Callable[[str], str]) -> str:
    """``2 missing there ('a', 'b')``; empty if there are no names."""
    if not names:
        return ""
    return f"{len(names)} {kind} ({listed([describe(name) for name in names], _SHOWN, conjunction=', and')})"


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            aliases = json.loads((opened.metadata() or {}).get("aliases", "{}"))
        return tensors | {alias: tensors[name] for alias, name in aliases.items()}
    except (SafetensorError, ValueError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{file}: is damaged or no safetensors file ({first_line(error)[:_REASON]})") from None


def _read_torch(file: Path, nested: str | None) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError, TypeError) as error:
        reason = first_line(error)[:_REASON]
        raise UserError(
            f"{file}: holds more than tensors, or is damaged; save a mapping of names to tensors ({reason})"
        ) from None
    if isinstance(content, Mapping) and nested in content:
        content = content[nested]
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: holds a {type(content).__name__}; save a mapping of names to tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"{file}: '{name}' is a {kind}, not a tensor; save a mapping of names to tensors")
    return {str(name): value for name, value in content.items()}


def view_of(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal for two tensors if they are one (tied weights): memory, offset, shape, strides, type, device.

    Callers have to treat tensors without elements apart: their address is 0, which makes their keys equal too.
    """
    memory = tensor.untyped_storage().data_ptr()
    return memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _untie(tensors: Weights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as safetensors takes them (no memory shared), and second name -> first name of tied ones left out."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        memory, view = tensor.untyped_storage().data_ptr(), view_of(tensor)
        if tensor.numel() and view in seen:
            aliases[name] = seen[view]
            continue
        copied = tensor.detach().cpu().contiguous()
        # Another view of memory that is in the file already (a slice, a transpose) is stored as a tensor of its own.
        unique[name] = copied.clone() if memory in storages else copied
        seen[view] = name
        storages.add(memory)
    return unique, aliases
