"""An optimizer's state by parameter name, so that other numbers of ranks, shardings and optimizers can load it.

``Optimizer.state_dict()`` numbers the parameters instead. ``torch.distributed.checkpoint.state_dict`` uses names too,
but makes an optimizer step to create the state of parameters that have none yet, which changes the state of the run.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmlm.core.distributed import sharded_like
from mmlm.optim.optimizers import Optimizer, members

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""Put into names by activation checkpointing and ``torch.compile``, but not into the names of ``state_dict()``."""


def optimizer_state_by_name(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state of ``optimizer``, whose parameters belong to ``module`` (sharded or not). Tensors are not copied.

    Returns a dictionary. ``state``: parameter name -> its tensors and numbers, for parameters that have any.
    ``groups``: for each group the class name of its optimizer (``kind``), the ``names`` of its parameters, and its
    ``settings``. Names are those of ``module.state_dict()``; a tied parameter has the first of its names.
    """
    names = {parameter: name for name, parameter in _named(module)}
    state: dict[str, dict[str, Any]] = {}
    groups = []
    for member in members(optimizer):
        for group in member.param_groups:
            of_group = {names[parameter]: parameter for parameter in group["params"]}
            state |= {name: dict(member.state[p]) for name, p in of_group.items() if p in member.state}
            settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            groups.append({"kind": type(member).__name__, "names": list(of_group), "settings": settings})
    return {"state": state, "groups": groups}


def load_optimizer_state_by_name(
    module: nn.Module, optimizer: Optimizer, saved: Mapping[str, Any], settings: bool = True
) -> list[str]:
    """Loads what ``optimizer_state_by_name`` returned; returns the names of parameters whose state was not loaded.

    Not loaded is the state of parameters that ``optimizer`` does not have, or that another class of optimizer trains
    now. Parameters without saved state start without any. For a parameter that is sharded now, full tensors are cut to
    this rank's shard.

    Args:
        module: the module whose parameters ``optimizer`` trains.
        optimizer: a new optimizer, or one over the same parameters.
        saved: the state.
        settings: whether to load each group's settings (learning rate, decay) too, as ``Optimizer.load_state_dict``
            does. False keeps those of ``optimizer``, for a run that goes on with another config.
    """
    names = {parameter: name for name, parameter in _named(module)}
    kinds = {name: group["kind"] for group in saved["groups"] for name in group["names"]}
    kept = {tuple(group["names"]): group["settings"] for group in saved["groups"]}
    left = dict.fromkeys(saved["state"])
    for member in members(optimizer):
        parameters = [parameter for group in member.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for index, parameter in enumerate(parameters):
            name = names[parameter]
            # AdamW's moments mean nothing to Muon, and the other way round.
            if name in saved["state"] and kinds[name] == type(member).__name__:
                values = saved["state"][name]
                state[index] = {key: _fitted(value, parameter) for key, value in values.items()}
                del left[name]
        # load_state_dict puts the state on the parameters' devices; it wants parameters by number.
        groups = member.state_dict()["param_groups"]
        if settings:
            # A group is recognised by its parameters; one that is made up differently now keeps its own settings.
            for group, live in zip(groups, member.param_groups, strict=True):
                group.update(kept.get(tuple(names[p] for p in live["params"]), {}))
        member.load_state_dict({"state": state, "param_groups": groups})
    return list(left)


def _named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The module's parameters with their names in ``state_dict()``, a tied parameter once."""
    named = []
    for name, parameter in module.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        named.append((name, parameter))
    return named


def _fitted(value: Any, parameter: nn.Parameter) -> Any:
    """A full tensor of the parameter's shape, sharded like it; any other ``value`` (a step count) as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    return sharded_like(parameter, value) if value.shape == parameter.shape else value
