"""An optimizer's state under its parameters' names, which other ranks, shardings and optimizers can take over.

``Optimizer.state_dict()`` counts parameters instead. ``torch.distributed.checkpoint.state_dict`` has names too, but it
takes a step to make the state of parameters that have none yet, which is then no longer the state of the run.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmlm.core.distributed import sharded_like
from mmlm.optim.optimizers import Optimizer, members

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What activation checkpointing and ``torch.compile`` put into names, though not into those of a ``state_dict()``."""


def optimizer_state_by_name(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state of ``optimizer``, over parameters of ``module`` (sharded or not), as live tensors.

    ``state``: by name the tensors and numbers of each parameter that has any. ``groups``: each group's optimizer by its
    class, names, and settings. The names are those of ``module.state_dict()``; a tied parameter has its first.
    """
    names = {parameter: name for name, parameter in _named(module)}
    state, groups = {}, []
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
    """Takes over what ``optimizer_state_by_name`` returned, of whatever sharding; returns the names left behind.

    Left behind is the state of parameters that ``optimizer`` does not have, or has under another kind of optimizer;
    parameters without saved state start afresh. Full tensors are cut to this rank's part where a parameter is sharded.

    Args:
        module: what ``optimizer`` is over.
        optimizer: freshly made, or over the same parameters.
        saved: the state.
        settings: takes over each group's settings (learning rate, decay) too, as ``Optimizer.load_state_dict`` does;
            false keeps those of ``optimizer``, for a run that goes on with another config.
    """
    names = {parameter: name for name, parameter in _named(module)}
    kinds = {name: group["kind"] for group in saved["groups"] for name in group["names"]}
    kept = {tuple(group["names"]): group["settings"] for group in saved["groups"]}
    left = dict.fromkeys(saved["state"])
    for member in members(optimizer):
        parameters = [parameter for group in member.param_groups for parameter in group["params"]]
        state = {}
        for index, parameter in enumerate(parameters):
            name = names[parameter]
            if name in saved["state"] and kinds[name] == type(member).__name__:
                values = saved["state"][name]
                state[index] = {key: _fitted(value, parameter) for key, value in values.items()}
                del left[name]
        groups = member.state_dict()["param_groups"]  # parameters counted, as load_state_dict wants them
        if settings:
            for group, live in zip(groups, member.param_groups, strict=True):
                group.update(kept.get(tuple(names[p] for p in live["params"]), {}))
        member.load_state_dict({"state": state, "param_groups": groups})
    return list(left)


def _named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = []
    for name, parameter in module.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        named.append((name, parameter))
    return named


def _fitted(value: Any, parameter: nn.Parameter) -> Any:
    """Sharded like the parameter, if it has its shape."""
    sharded = isinstance(parameter, DTensor) and isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not sharded or value.shape != parameter.shape:
        return value
    return sharded_like(parameter, value)
