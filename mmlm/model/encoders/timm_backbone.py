"""timm models by name, with weights from the hub or from a user's file; every fault becomes a one-line UserError."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError  # torch raises it for a file that would run code; nothing is unpickled here
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.local_files import locate
from mmlm.core.timm_without_wandb import EfficientNet, VisionTransformerDistilled, load_state_dict, timm
from mmlm.core.wording import listed, one_line


def timm_names(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Renames an EfficientNet checkpoint of the PyTorch port ``efficientnet_lite_pytorch`` to timm's names.

    That port numbers blocks through all stages and starts layer names with ``_``. Apart from names the two networks are
    equal: they compute the same to the last bit (tested with EfficientNet-Lite0). Any other ``state`` is returned as it
    is. A name without a counterpart in timm is kept, for the caller to refuse.
    """
    if _MARK not in state or not isinstance(backbone, EfficientNet):
        return state
    # The port's block number i is ``prefixes[i]`` in timm.
    stages = cast(Iterable[nn.Sequential], backbone.blocks)
    prefixes = [f"blocks.{stage}.{index}" for stage, part in enumerate(stages) for index in range(len(part))]
    expanded = {name.split(".")[1] for name in state if "._expand_conv." in name}
    return {_renamed(name, prefixes, expanded): tensor for name, tensor in state.items()}


_SHOWN = 6
"""Tensor names that an error message lists before it counts the rest."""


def check_arguments(
    name: str, pretrained: bool, weights: str | None, registers: int | None, drop_path: float, patch_dropout: float
) -> None:
    """UserError unless timm has the architecture, weights have at most one source, and the options are in range."""
    _check_name(name)
    if pretrained and weights is not None:
        raise ArgumentError(f"weights: '{weights}' and pretrained=true both load weights; choose one")
    if registers is not None and registers < 0:
        raise ArgumentError(f"registers: {registers} must be at least 0; null keeps the architecture's own")
    for key, rate in {"drop_path": drop_path, "patch_dropout": patch_dropout}.items():
        if not 0 <= rate < 1:
            raise ArgumentError(f"{key}: {rate} must be at least 0 and below 1")


def _check_name(name: str) -> None:
    """UserError unless timm has an architecture (with or without a tag of pretrained weights) of this name."""
    if name in timm.list_models(name, pretrained=False) or name in timm.list_pretrained(name):
        return
    near = timm.list_models(f"{name.split('_')[0]}*")[:6]
    some = ", ".join(near) or "vit_tiny_patch16_224"
    raise ArgumentError(f"name: timm has no model '{name}'; it has for example {some}")


def check_registers(backbone: nn.Module, registers: int | None) -> None:
    """UserError for ``registers`` in an architecture that would not put them in front of its patches."""
    if registers is not None and isinstance(backbone, VisionTransformerDistilled):
        raise ArgumentError(f"registers: {registers} do not go with a distillation token; use null")


def create(name: str, pretrained: bool, **arguments: Any) -> nn.Module:
    """timm's architecture, with random weights or (``pretrained``) the ones timm publishes, positions resized.

    Published weights come from the hub or its cache; UserError if they cannot be loaded or do not fit. For arguments
    that the constructor refuses, timm's own exception passes through: the caller knows the config key to name.
    """
    if not pretrained:
        return timm.create_model(name, pretrained=False, **arguments)
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise ArgumentError(
            f"pretrained: the weights of timm's '{name}' cannot be loaded ({one_line(error)}); use "
            "weights=FILE for a file of your own"
        ) from error


def mean_and_std(backbone: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of each colour, in [0, 1], by which timm normalises images for this architecture."""
    published = cast(Mapping[str, Any], backbone.pretrained_cfg)
    return published["mean"], published["std"]


def head_keys(backbone: nn.Module, full: Collection[str]) -> set[str]:
    """Checkpoint keys to ignore, since they belong to the classifier or to a part that has been left out.

    ``full`` are the names of the state dict before parts were left out of ``backbone``.
    """
    names = cast(Mapping[str, Any], backbone.pretrained_cfg).get("classifier") or ()
    classifiers = (names,) if isinstance(names, str) else names
    gone = set(full) - backbone.state_dict().keys()
    return gone | {f"{name}.{kind}" for name in classifiers for kind in ("weight", "bias")}


def load_file(backbone: nn.Module, file: str, head: Collection[str]) -> None:
    """Copies the weights in ``file`` (safetensors; or .pth, .bin, read without running code) into ``backbone``.

    ``file`` is a path or ``package:NAME/inside`` (see ``mmlm.core.local_files``), in any layout that timm converts
    for this architecture; position tables are resized to the grid. Keys in ``head`` are ignored.

    Raises UserError for a file that is not there or cannot be read, and for missing, unexpected or misshapen tensors.
    """
    path = locate(file, "weights")
    if not Path(path).is_file():
        raise ArgumentError(f"weights: there is no file '{file}'; give a .safetensors, .pth or .bin file")
    try:
        read = load_state_dict(path, weights_only=True)
        state = _converter(backbone)(read, backbone)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise ArgumentError(f"weights: '{file}' cannot be read as plain tensors ({one_line(error)})") from error
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        kind = type(backbone).__name__
        raise ArgumentError(f"weights: '{file}' holds no weights of a {kind} ({one_line(error)})") from error
    check_state(state, backbone.state_dict(), head, f"weights: '{file}'")
    backbone.load_state_dict({key: value for key, value in state.items() if key not in head})


def check_state(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: Collection[str], what: str) -> None:
    """UserError unless ``found`` has the names and shapes of ``wanted``; keys in ``head`` are ignored.

    ``what`` starts the message: the argument and the file.
    """
    both = found.keys() & wanted.keys()
    faults = {
        "lacks": wanted.keys() - found.keys(),
        "has unexpected": found.keys() - wanted.keys() - set(head),
        "has another shape of": {key for key in both if found[key].shape != wanted[key].shape},
    }
    told = [f"{fault} {listed(sorted(keys), _SHOWN)}" for fault, keys in faults.items() if keys]
    if told:
        raise ArgumentError(f"{what} {'; '.join(told)}; build the encoder as it was when the file was saved")


def _converter(backbone: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """The function that converts a checkpoint to timm's names: the architecture's own, else ``timm_names``."""
    # By timm's convention it stands in the module of the architecture's class.
    module = inspect.getmodule(type(backbone))
    return getattr(module, "checkpoint_filter_fn", timm_names)


_MARK = "_conv_stem.weight"
"""A name that only checkpoints of the port (see ``timm_names``) have."""
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers of a block with (``_EXPANDED``) and without (``_SEPARABLE``) an expansion: name in the port, name in timm."""


def _renamed(name: str, prefixes: list[str], expanded: set[str]) -> str:
    """timm's name of the port's tensor ``name``. ``expanded`` are the numbers of blocks with an expansion."""
    if not name.startswith("_blocks."):
        layer, _, rest = name.partition(".")
        return f"{_OUTER.get(layer, layer)}.{rest}"
    _, block, layer, rest = name.split(".", 3)
    names = _EXPANDED if block in expanded else _SEPARABLE
    return f"{prefixes[int(block)]}.{names.get(layer, layer)}.{rest}" if int(block) < len(prefixes) else name
