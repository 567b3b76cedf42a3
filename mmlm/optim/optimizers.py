"""Parameter groups, optimizers and learning-rate schedules."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.optim.linear_kinds import linear_kinds
from mmlm.optim.lora import is_adapter
from mmlm.optim.muon import BatchedMuon

NO_SCALES: Mapping[str, float] = MappingProxyType({})
"""Every parameter has the whole learning rate."""


def check_number(key: str, value: float, fits: bool, rule: str) -> None:
    if not fits:
        raise UserError(f"{key}: {value} must be {rule}")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, kernels and token embeddings.

    The usual rule (GPT-2, timm): tensors of fewer than two dimensions (norms, biases, temperature) do not decay.
    Learned queries, positions, class and register tokens are matrices by shape only, each row an offset of its own, so
    they do not decay either.
    """
    offsets = ("queries", "position_embedding", "pos_embed", "cls_token", "reg_token", "dist_token")
    return parameter.ndim >= 2 and not name.endswith(offsets)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share optimizer settings."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    scale: float = 1.0
    """Share of the learning rate."""


def parameter_groups(
    module: nn.Module, weight_decay: float, scales: Mapping[str, float] = NO_SCALES
) -> list[ParameterGroup]:
    """Trainable parameters in groups, first those with and then those without ``weight_decay``, either by their share
    of the learning rate in ``scales``, largest first. A shared tensor is listed once.

    The order depends on names and shares only, since checkpoints count the groups and their parameters. Raises
    UserError if nothing trains.
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
    """What training needs of an optimizer: ``torch.optim.Optimizer`` and ``OptimizerPair`` both have it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> None:
        """Updates the parameters from their gradients."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what ``state_dict`` returned."""
        ...


class OptimizerPart(Protocol):
    """Makes an optimizer for a module's trainable parameters. Every group has its peak rate under ``peak_lr``."""

    def __call__(self, module: nn.Module, scales: Mapping[str, float] = NO_SCALES) -> Optimizer:
        """The optimizer; ``scales`` has a share of the learning rate by parameter name, where it is not 1."""
        ...


def _as_torch(groups: Iterable[ParameterGroup], lr: float) -> list[dict[str, object]]:
    return [
        {
            "params": list(group.parameters),
            "weight_decay": group.weight_decay,
            "lr": lr * group.scale,
            "peak_lr": lr * group.scale,
        }
        for group in groups
    ]


def _check_step(lr: float, weight_decay: float, eps: float) -> None:
    check_number("optim.lr", lr, 0 < lr < math.inf, "above 0")
    check_number("optim.weight_decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0")
    check_number("optim.eps", eps, 0 < eps < math.inf, "above 0")


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
        """Raises UserError for a value outside of its range."""
        _check_step(self.lr, self.weight_decay, self.eps)

    def __call__(self, module: nn.Module, scales: Mapping[str, float] = NO_SCALES) -> Optimizer:
        """The optimizer for ``module``'s trainable parameters."""
        return self.over(parameter_groups(module, self.weight_decay, scales))

    def over(self, groups: Iterable[ParameterGroup]) -> Optimizer:
        """The optimizer for some groups."""
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"optim.betas: {list(self.betas)} must be two numbers in [0, 1), such as [0.9, 0.98]")
        betas = tuple(self.betas)
        return torch.optim.AdamW(_as_torch(groups, self.lr), lr=self.lr, betas=betas, eps=self.eps, fused=True)


class OptimizerPair:
    """Two optimizers over different parameters that step together."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.first, self.second = first, second

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both, the live ones."""
        return [*self.first.param_groups, *self.second.param_groups]

    def step(self) -> None:
        """Steps both."""
        self.first.step()
        self.second.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of both."""
        self.first.zero_grad(set_to_none)
        self.second.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over both states."""
        self.first.load_state_dict(state_dict["first"])
        self.second.load_state_dict(state_dict["second"])


def hidden_matrices(module: nn.Module) -> set[str]:
    """Names of the linear layers' weights between a model's inputs and its outputs, GPT-2's transposed ones too.

    Left out: embeddings, kernels, the last projections (vocabulary head and both embedding projections), and the
    factors of low-rank adapters (Muon would make all of their few singular values alike).
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

    Muon's update is the momentum with its singular values brought near 1 (Keller Jordan, 2024, by a Newton-Schulz
    iteration); scaled to AdamW's usual step size (arXiv:2502.16982), so that one ``lr`` serves both.
    """

    lr: float = 2e-3
    """Peak learning rate of both."""
    weight_decay: float = 0.05
    """Decoupled: a step subtracts lr * weight_decay * weight."""
    momentum: float = 0.95
    """Decay of Muon's running mean (Nesterov)."""
    betas: Sequence[float] = (0.9, 0.98)
    """AdamW's decay of the running mean and of the running square."""
    eps: float = 1e-8
    """AdamW's, added to the root of the running square."""

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of its range."""
        _check_step(self.lr, self.weight_decay, self.eps)
        check_number("optim.momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")

    def __call__(self, module: nn.Module, scales: Mapping[str, float] = NO_SCALES) -> Optimizer:
        """The pair for ``module``'s trainable parameters, or the one of them that has something to train."""
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
    """The parameters of a group that are (or are not) among ``names``."""
    kept = {n: p for n, p in zip(group.names, group.parameters, strict=True) if (n in names) is inside}
    return ParameterGroup(tuple(kept), tuple(kept.values()), group.weight_decay, group.scale)


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Sets every group to ``factor`` of its peak; returns the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients down to a joint L2 norm of ``limit`` if theirs is larger; returns the norm before, float[].

    As ``nn.utils.clip_grad_norm_``, also where some are sharded over ranks (FSDP2): every rank calls this, and the norm
    is that of one process, an ordinary tensor.
    """
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in found if isinstance(gradient, DTensor)]
    others = [gradient for gradient in found if not isinstance(gradient, DTensor)]
    norm = nn.utils.get_total_norm(others)
    if sharded:
        norm = (sum_over_ranks(nn.utils.get_total_norm(sharded).square()) + norm.square()).sqrt()
    if found:
        torch._foreach_mul_([*sharded, *others], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def carry_state(old: Optimizer, new: Optimizer) -> Optimizer:
    """``new``, which goes on from the state of ``old`` where both have the same parameter; others start fresh."""
    state = {parameter: kept for part in members(old) for parameter, kept in part.state.items()}
    for part in members(new):
        for group in part.param_groups:
            part.state.update({parameter: state[parameter] for parameter in group["params"] if parameter in state})
    return new


def members(optimizer: Optimizer) -> tuple[Any, ...]:
    """The ``torch.optim.Optimizer``s that it is made of."""
    return (optimizer.first, optimizer.second) if isinstance(optimizer, OptimizerPair) else (optimizer,)
