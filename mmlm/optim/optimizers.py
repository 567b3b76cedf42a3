"""Parameter groups, the optimizers AdamW and Muon, and clipping of gradients."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import ArgumentError, UserError
from mmlm.optim.linear_kinds import linear_kinds
from mmlm.optim.lora import is_adapter
from mmlm.optim.muon import BatchedMuon

NO_SCALES: Mapping[str, float] = MappingProxyType({})
"""No parameter has a reduced learning rate."""


def check_number(name: str, value: object, fits: bool, rule: str) -> None:
    """ArgumentError with the argument's ``name``, its ``value`` and the ``rule`` ("above 0") unless ``fits``."""
    if not fits:
        raise ArgumentError(f"{name}: {value} must be {rule}")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: to matrices, kernels and token embeddings.

    The usual rule (GPT-2, timm) is that tensors of fewer than two dimensions (norms, biases, temperature) do not decay.
    Learned queries, positions, class and register tokens do not decay either: they are matrices by shape only, and each
    of their rows is an offset of its own.
    """
    offsets = ("queries", "position_embedding", "pos_embed", "cls_token", "reg_token", "dist_token")
    return parameter.ndim >= 2 and not name.endswith(offsets)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share the settings of an optimizer."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    scale: float = 1.0
    """Share of the learning rate."""


def parameter_groups(
    module: nn.Module, weight_decay: float, scales: Mapping[str, float] = NO_SCALES
) -> list[ParameterGroup]:
    """The trainable parameters in groups of equal settings: the groups with ``weight_decay`` first, then those without.

    Within either, groups are ordered by their share of the learning rate in ``scales``, largest first. A tied parameter
    is listed once. The order depends on names and shares only, so that every rank and every restart makes the same
    groups. Raises UserError if nothing trains.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise UserError("freeze.frozen: no parameter is left to train; freeze less, or add freeze.lora")
    groups = []
    for decay in (True, False):
        for scale in sorted({scales.get(name, 1.0) for name, _ in named}, reverse=True):
            chosen = [(n, p) for n, p in named if decays(n, p) is decay and scales.get(n, 1.0) == scale]
            if chosen:
                names, parameters = zip(*chosen, strict=True)
                groups.append(ParameterGroup(names, parameters, weight_decay if decay else 0.0, scale))
    return groups


class Optimizer(Protocol):
    """The part of an optimizer that training uses, common to ``torch.optim.Optimizer`` and ``OptimizerPair``."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with their settings (``params``, ``lr``, ...), which may be changed in place."""
        ...

    def step(self) -> None:
        """Updates the parameters from their gradients."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Removes the gradients (sets them to 0 if ``set_to_none`` is false)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state of the parameters and the settings of the groups."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned."""
        ...


class OptimizerPart(Protocol):
    """Makes an optimizer for a module's trainable parameters; every group has its peak learning rate as ``peak_lr``."""

    def __call__(self, module: nn.Module, scales: Mapping[str, float] = NO_SCALES) -> Optimizer:
        """The optimizer; ``scales`` maps parameter names to shares of the learning rate, for shares other than 1."""
        ...


def _as_torch(groups: Iterable[ParameterGroup], lr: float) -> list[dict[str, Any]]:
    """The groups as torch's optimizers take them."""
    return [
        {
            "params": list(group.parameters),
            "weight_decay": group.weight_decay,
            "lr": lr * group.scale,
            "peak_lr": lr * group.scale,
        }
        for group in groups
    ]


def _check_step(lr: float, weight_decay: float, betas: Sequence[float], eps: float) -> None:
    check_number("lr", lr, 0 < lr < math.inf, "above 0")
    check_number("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0")
    fits = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    check_number("betas", list(betas), fits, "two numbers in [0, 1), such as [0.9, 0.98]")
    check_number("eps", eps, 0 < eps < math.inf, "above 0")


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv:1711.05101), fused where the device has it."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled: a step subtracts lr * weight_decay * weight."""
    betas: Sequence[float] = (0.9, 0.98)
    """Decay of the running mean and of the running square."""
    eps: float = 1e-8
    """Added to the root of the running square."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        _check_step(self.lr, self.weight_decay, self.betas, self.eps)

    def __call__(self, module: nn.Module, scales: Mapping[str, float] = NO_SCALES) -> Optimizer:
        """The optimizer for ``module``'s trainable parameters."""
        return self.over(parameter_groups(module, self.weight_decay, scales))

    def over(self, groups: Iterable[ParameterGroup]) -> Optimizer:
        """The optimizer for some groups."""
        betas = self.betas[0], self.betas[1]
        return torch.optim.AdamW(_as_torch(groups, self.lr), lr=self.lr, betas=betas, eps=self.eps, fused=True)


class OptimizerPair:
    """Two optimizers over different parameters that step together."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.first, self.second = first, second

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both optimizers: the very dictionaries, so that setting a learning rate has an effect."""
        return [*self.first.param_groups, *self.second.param_groups]

    def step(self) -> None:
        """Makes a step of both optimizers."""
        self.first.step()
        self.second.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Removes the gradients of both optimizers."""
        self.first.zero_grad(set_to_none)
        self.second.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of both optimizers, under ``first`` and ``second``."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the states of both optimizers."""
        self.first.load_state_dict(state_dict["first"])
        self.second.load_state_dict(state_dict["second"])


def hidden_matrices(module: nn.Module) -> set[str]:
    """Names of the hidden layers' weight matrices, which Muon trains; GPT-2's transposed ones (Conv1D) are included.

    Left out are embeddings, convolution kernels, the last projections (vocabulary head and both embedding projections),
    and the factors of low-rank adapters (Muon would make all of their few singular values equal).
    """
    last = ("head", "lm_head", "embed_out", "image_projection", "text_projection")
    linear = {name for name, part in module.named_modules() if isinstance(part, linear_kinds())}
    return {
        f"{name}.weight"
        for name in linear
        if not is_adapter(name) and name.removesuffix(".base_layer").split(".")[-1] not in last
    }


@dataclass(frozen=True)
class Muon:
    """Muon for the hidden matrices, AdamW for everything else.

    Muon's update is the momentum with its singular values brought near 1 by a Newton-Schulz iteration (Keller Jordan,
    2024), scaled to AdamW's usual step size (arXiv:2502.16982) so that one ``lr`` serves both.
    """

    lr: float = 2e-3
    """Peak learning rate of both Muon and AdamW."""
    weight_decay: float = 0.05
    """Decoupled: a step subtracts lr * weight_decay * weight."""
    momentum: float = 0.95
    """Decay of Muon's running mean (Nesterov)."""
    betas: Sequence[float] = (0.9, 0.98)
    """AdamW's decay of the running mean and of the running square."""
    eps: float = 1e-8
    """AdamW's; added to the root of the running square."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        _check_step(self.lr, self.weight_decay, self.betas, self.eps)
        check_number("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")

    def __call__(self, module: nn.Module, scales: Mapping[str, float] = NO_SCALES) -> Optimizer:
        """The two optimizers for ``module``'s trainable parameters; only one of them if the other would have none."""
        hidden, groups = hidden_matrices(module), parameter_groups(module, self.weight_decay, scales)
        matrices = [part for group in groups if (part := _pick(group, hidden, inside=True)).parameters]
        others = [part for group in groups if (part := _pick(group, hidden, inside=False)).parameters]
        adamw = AdamW(self.lr, self.weight_decay, self.betas, self.eps)
        if not matrices:
            return adamw.over(others)
        muon = BatchedMuon(
            _as_torch(matrices, self.lr), lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum
        )
        return OptimizerPair(muon, adamw.over(others)) if others else muon


def _pick(group: ParameterGroup, names: Collection[str], inside: bool) -> ParameterGroup:
    """The group's parameters whose names are among ``names`` (``inside`` true), or all others (``inside`` false)."""
    kept = {n: p for n, p in zip(group.names, group.parameters, strict=True) if (n in names) is inside}
    return ParameterGroup(tuple(kept), tuple(kept.values()), group.weight_decay, group.scale)


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Sets each group's learning rate to ``factor`` times its peak; returns the highest of the rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients down if their joint L2 norm exceeds ``limit``; returns the norm from before, float[].

    Does what ``nn.utils.clip_grad_norm_`` does, also if some gradients are sharded over ranks (FSDP2). Every rank calls
    this function; the norm is an ordinary tensor, equal on all ranks and to that of one process.
    """
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in found if isinstance(gradient, DTensor)]
    others = [gradient for gradient in found if not isinstance(gradient, DTensor)]
    # A rank holds one shard of each sharded gradient, whose squares add up over ranks. Gradients that every rank holds
    # in full have to be counted once.
    norm = nn.utils.get_total_norm(others)
    if sharded:
        norm = (sum_over_ranks(nn.utils.get_total_norm(sharded).square()) + norm.square()).sqrt()
    # The factor is applied in any case: whether it is below 1 is known on the device only.
    if found:
        torch._foreach_mul_([*sharded, *others], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def carry_state(old: Optimizer, new: Optimizer) -> Optimizer:
    """Moves ``old``'s state of every parameter that ``new`` has too into ``new``, and returns ``new``.

    Called when a freeze plan changes which parameters train; the other parameters of ``new`` start without state.
    """
    state = {parameter: kept for part in members(old) for parameter, kept in part.state.items()}
    for part in members(new):
        for group in part.param_groups:
            part.state.update({parameter: state[parameter] for parameter in group["params"] if parameter in state})
    return new


def members(optimizer: Optimizer) -> tuple[Any, ...]:
    """The ``torch.optim.Optimizer``s that an optimizer consists of: two for a pair, else itself."""
    return (optimizer.first, optimizer.second) if isinstance(optimizer, OptimizerPair) else (optimizer,)
