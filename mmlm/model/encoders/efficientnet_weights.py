"""EfficientNet weights in the names of the ``efficientnet-pytorch`` packages, for timm's EfficientNets."""

from timm.models import EfficientNet
from torch import Tensor, nn

_MARK = "_conv_stem.weight"
"""A name that only that layout has."""
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
"""The layers of a block with and without an expansion."""


def timm_names(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors by timm's names; ``state`` as it is where it has them already.

    That layout counts blocks through all stages and underlines its names. Differs in nothing but the names: the two
    networks compute the same to the last bit (tested with EfficientNet-Lite0). A name that timm has no counterpart of
    is kept, for the caller to refuse.
    """
    if _MARK not in state or not isinstance(backbone, EfficientNet):
        return state
    prefixes = [f"blocks.{stage}.{index}" for stage, part in enumerate(backbone.blocks) for index in range(len(part))]
    expanded = {name.split(".")[1] for name in state if "._expand_conv." in name}
    return {_renamed(name, prefixes, expanded): tensor for name, tensor in state.items()}


def _renamed(name: str, prefixes: list[str], expanded: set[str]) -> str:
    if not name.startswith("_blocks."):
        layer, _, rest = name.partition(".")
        return f"{_OUTER.get(layer, layer)}.{rest}"
    _, block, layer, rest = name.split(".", 3)
    names = _EXPANDED if block in expanded else _SEPARABLE
    return f"{prefixes[int(block)]}.{names.get(layer, layer)}.{rest}" if int(block) < len(prefixes) else name
