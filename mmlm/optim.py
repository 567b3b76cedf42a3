"""Parameter groups, optimizers and learning-rate schedules."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmlm.errors import UserError


class Schedule(Protocol):
    """The learning rate as a share of its peak."""

    def __call__(self, step: int, num_steps: int) -> float:
        """Factor in [0, 1] for optimizer step ``step`` (from 0) of ``num_steps``."""
        ...


def _warm_up(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to ``final`` (SGDR without restarts, arXiv:1608.03983)."""

    warmup_steps: int = 100
    """Optimizer steps from 0 to the peak."""
    final: float = 0.0
    """Share of the peak that the decay would reach one step after the last."""

    def __call__(self, step: int, num_steps: int) -> float:
        """The factor at ``step``."""
        if step < self.warmup_steps:
            return _warm_up(step, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, constant, then a linear decay at the end (WSD, MiniCPM, arXiv:2404.06395)."""

    warmup_steps: int = 100
    """Optimizer steps from 0 to the peak."""
    decay_share: float = 0.2
    """Share of all steps, at the end, that decay."""
    final: float = 0.0
    """Share of the peak that the decay would reach one step after the last."""

    def __call__(self, step: int, num_steps: int) -> float:
        """The factor at ``step``."""
        decay_steps = max(1, round(num_steps * self.decay_share))
        left = (num_steps - step) / decay_steps
        return min(_warm_up(step, self.warmup_steps), self.final + (1 - self.final) * min(1.0, left))


@dataclass(frozen=True)
class Constant:
    """Linear warm-up, then the peak to the end."""

    warmup_steps: int = 100
    """Optimizer steps from 0 to the peak."""

    def __call__(self, step: int, num_steps: int) -> float:
        """The factor at ``step``."""
        return _warm_up(step, self.warmup_steps)


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


def parameter_groups(module: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Trainable parameters in two groups, with and without ``weight_decay``. A shared tensor is listed once."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for decay in (True, False):
        chosen = [(name, p) for name, p in named if decays(name, p) is decay]
        if chosen:
            names, parameters = zip(*chosen, strict=True)
            groups.append(ParameterGroup(names, parameters, weight_decay if decay else 0.0))
    return groups


class OptimizerPart(Protocol):
    """Makes an optimizer for a module's trainable parameters. Every group has its peak rate under ``peak_lr``."""

    def __call__(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer."""
        ...


def _as_torch(groups: Iterable[ParameterGroup], lr: float) -> list[dict[str, object]]:
    return [{"params": list(g.parameters), "weight_decay": g.weight_decay, "lr": lr, "peak_lr": lr} for g in groups]


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

    def __call__(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for ``module``'s trainable parameters."""
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"optim.betas: {list(self.betas)} must be two numbers in [0, 1), such as [0.9, 0.98]")
        groups = _as_torch(parameter_groups(module, self.weight_decay), self.lr)
        return torch.optim.AdamW(groups, lr=self.lr, betas=tuple(self.betas), eps=self.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to ``factor`` of its peak; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return optimizer.param_groups[0]["lr"]


class ExponentialMovingAverage:
    """A running average of a module's parameters, ``average = decay * average + (1 - decay) * parameter``.

    The decay warms up as ``min(decay, (1 + step) / (10 + step))``, so that early averages are not the initialisation
    (TensorFlow's ``ExponentialMovingAverage``). Floating-point buffers are averaged too, integer ones copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"train.ema_decay: {decay} must lie between 0 and 1, such as 0.999; null turns it off")
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the parameters after optimizer step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = [], []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self.tensors[name])
                values.append(tensor.detach())
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over saved averages."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)
