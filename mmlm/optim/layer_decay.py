"""Layer-wise learning-rate decay: the farther a layer is from the output, the smaller its learning rate."""

from torch import nn

from mmlm.core.errors import UserError


def layer_depths(part: nn.Module) -> tuple[dict[str, int], int]:
    """Parameter name -> depth, for the parameters of a part, and the number of its layers, L.

    Depth 0 is before the layers (stem, embeddings, positions), 1 to L are the layers, L + 1 is after them (last norm,
    head). Layers are the items of the part's outermost lists of blocks, in the order of registration. A parameter
    between two such lists has the depth of the layer before it.
    """
    layers: list[str] = []
    stacks: list[str] = []
    for name, module in part.named_modules():
        if _is_stack(module) and not any(name.startswith(f"{stack}.") for stack in stacks):
            # Lists inside of a block (of experts, say) are no layers of their own: only outermost ones come here.
            stacks.append(name)
            layers += [f"{name}.{index}.".lstrip(".") for index, _ in module.named_children()]
    depths, reached = {}, 0
    for name, _ in part.named_parameters():
        # Parameters come in the order of registration, so `reached` is the last layer before this one.
        inside = next((depth for depth, layer in enumerate(layers, 1) if name.startswith(layer)), None)
        reached = inside or reached
        depths[name] = inside or (reached if reached < len(layers) else len(layers) + 1)
    return depths, len(layers)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a list of blocks, each of which has submodules and parameters.

    In a ``Sequential`` they must be of one class, since a stem is often one too; a ``ModuleList`` may mix classes (an
    attention block in every third layer, say).
    """
    items = list(module.children())
    if not isinstance(module, nn.ModuleList | nn.Sequential) or not items:
        return False
    alike = isinstance(module, nn.ModuleList) or len({type(item) for item in items}) == 1
    return alike and all(any(True for _ in item.children()) and any(True for _ in item.parameters()) for item in items)


def layer_scales(part: nn.Module, name: str, decay: float) -> dict[str, float]:
    """Parameter name -> share of the learning rate, ``decay ** (L + 1 - depth)`` (BEiT, arXiv:2106.08254).

    ``name`` is the part's name, for messages; parameter names are relative to the part. Raises UserError for a part
    without layers.
    """
    depths, num_layers = layer_depths(part)
    if not num_layers:
        raise UserError(f"freeze.layer_decay.{name}: '{name}' is no stack of layers; name a part that is one")
    return {key: decay ** (num_layers + 1 - depth) for key, depth in depths.items()}
