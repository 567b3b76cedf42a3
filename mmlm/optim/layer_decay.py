"""Layer-wise learning-rate decay: the deeper a layer stands below the output, the smaller its steps."""

from torch import nn

from mmlm.core.errors import UserError


def layer_depths(part: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of each of a part's parameters, and the number of its layers, L.

    0 for what stands before the layers (stem, embeddings, positions), 1 to L for the layers, L + 1 for what stands
    behind them (last norm, head). Layers are the items of the part's outermost lists of blocks, in the order in which
    they were registered; what stands between two such lists has the depth of the layer before it.
    """
    layers: list[str] = []
    stacks: list[str] = []
    for name, module in part.named_modules():
        if _is_stack(module) and not any(name.startswith(f"{stack}.") for stack in stacks):
            stacks.append(name)
            layers += [f"{name}.{index}.".lstrip(".") for index, _ in module.named_children()]
    depths, reached = {}, 0
    for name, _ in part.named_parameters():
        inside = next((depth for depth, layer in enumerate(layers, 1) if name.startswith(layer)), None)
        reached = inside or reached
        depths[name] = inside or (reached if reached < len(layers) else len(layers) + 1)
    return depths, len(layers)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a list of blocks: each with modules and parameters inside, in a sequence all of one class."""
    items = list(module.children())
    if not isinstance(module, nn.ModuleList | nn.Sequential) or not items:
        return False
    alike = isinstance(module, nn.ModuleList) or len({type(item) for item in items}) == 1
    return alike and all(any(True for _ in item.children()) and any(True for _ in item.parameters()) for item in items)


def layer_scales(part: nn.Module, name: str, decay: float) -> dict[str, float]:
    """Each parameter's share of the learning rate, ``decay ** (L + 1 - depth)`` (BEiT, arXiv:2106.08254).

    ``name`` is the part's own; names of parameters are relative to it. Raises UserError for a part without layers.
    """
    depths, num_layers = layer_depths(part)
    if not num_layers:
        raise UserError(f"freeze.layer_decay.{name}: '{name}' is no stack of layers; name a part that is one")
    return {key: decay ** (num_layers + 1 - depth) for key, depth in depths.items()}
