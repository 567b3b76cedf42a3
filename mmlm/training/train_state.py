"""Everything that changes while training, and that a checkpoint has to hold."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.distributed import gather_objects, rank, world_size
from mmlm.data.unreadable import BadCount, Unreadable
from mmlm.optim.average import ExponentialMovingAverage
from mmlm.optim.loss_scale import LossScale
from mmlm.optim.optimizers import Optimizer
from mmlm.optim.state import load_optimizer_state_by_name, optimizer_state_by_name
from mmlm.training.replicated import unwrapped
from mmlm.training.window import Window


class Loader(Protocol):
    """What training needs of its data."""

    position: int
    """Where the next iteration begins: examples given to all ranks since the run's start. ``Batch.position`` says how
    far an iteration has come."""

    def epoch_at(self, position: int) -> int:
        """The epoch of the example at a position, from 0."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end."""
        ...


@dataclass
class TrainState:
    """A run between two optimizer steps."""

    train_step: nn.Module
    """The module that is differentiated, maybe in ``Replicated``."""
    optimizer: Optimizer
    loader: Loader
    ema: ExponentialMovingAverage | None = None
    seed: int = 0
    """Seed of the masks and negatives that objectives draw, and of torch's generators."""
    step: int = 0
    """Optimizer steps done, those that were left out included."""
    position: int = 0
    """Examples given to all ranks so far."""
    seconds: float = 0.0
    """Wall-clock seconds of training so far, over all sessions, evaluation included."""
    best: float | None = None
    """Best value of ``FitSettings.best_metric`` so far."""
    optimizer_for: Callable[[int, Optimizer], Optimizer] | None = None
    """Called with (step, optimizer): freezes and unfreezes for that step and returns the optimizer to use, the same
    object unless the trainable set changed. None: the same parameters train from the first step to the last."""
    loss_scale: LossScale | None = None
    """The dynamic loss scale of float16 training; None in other precisions."""
    window: Window = field(default_factory=Window)
    """What this rank saw since the last row of metrics."""
    corrupt: Unreadable = field(default_factory=Unreadable)
    """The images of this epoch that this rank could not decode."""
    bad: BadCount = field(default_factory=BadCount)
    """How many of all ranks there were, which the limits of bad data are about."""
    skipped_steps: int = 0
    """Steps left out because a loss or gradient was not finite."""
    recent_losses: list[float] = field(default_factory=list)
    """The last losses, oldest first, which the next one is compared with to find loss spikes."""
    rewinds: int = 0
    """How often the run went back to a checkpoint because of a loss spike."""
    owes_evaluation: bool = False
    """Whether an evaluation was due at this step when the run was stopped."""

    def go_to(self, step: int) -> None:
        """Makes ``step`` the next one: what trains, and the optimizer over it, are a function of it."""
        self.step = step
        if self.optimizer_for is not None:
            self.optimizer = self.optimizer_for(step, self.optimizer)

    def weights(self) -> Mapping[str, Tensor]:
        """The weights to evaluate and export, by the unwrapped module's names: the moving average if there is one."""
        return self.ema.tensors if self.ema else unwrapped(self.train_step).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """All but the weights: optimizer, data position, counters, and what every rank has of its own.

        Every rank has to call it: each brings its window. It holds plain numbers, strings and tensors only. There is no
        random state: torch's generators are seeded anew at every step.
        """
        everyone = gather_objects((self.window.state_dict(), self.corrupt))
        corrupt = Unreadable.joined(one for _, one in everyone)
        return {
            "optimizer": optimizer_state_by_name(unwrapped(self.train_step), self.optimizer),
            "position": self.position,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state_dict(),
            "windows": [window for window, _ in everyone],
            "corrupt": list(corrupt.names),
            "corrupt_unnamed": corrupt.unnamed,
            "bad": self.bad.state_dict(),
            "skipped_steps": self.skipped_steps,
            "recent_losses": list(self.recent_losses),
            "rewinds": self.rewinds,
            "owes_evaluation": self.owes_evaluation,
        }

    def load_state_dict(self, state: Mapping[str, Any], settings: bool = True) -> None:
        """Takes over what ``state_dict`` returned, on any number of ranks.

        With ``settings`` false the optimizer keeps its own learning rates and decays.
        """
        self.go_to(state["step"])
        module = unwrapped(self.train_step)
        load_optimizer_state_by_name(module, self.optimizer, state["optimizer"], settings)
        self.position = self.loader.position = state["position"]
        self.seconds, self.best = state["seconds"], state["best"]
        device = next(self.train_step.parameters()).device
        scale = state["loss_scale"]
        self.loss_scale = None if scale is None else LossScale.restored(scale, device)
        self.window = Window.restored(state["windows"], world_size(), device)
        # The list is that of all ranks; what one rank keeps is told once.
        self.corrupt = Unreadable()
        if rank() == 0:
            self.corrupt.add(state["corrupt"], state.get("corrupt_unnamed"))
        self.bad = BadCount(**state.get("bad", {}))  # a checkpoint of an earlier version has counted none
        self.skipped_steps = state["skipped_steps"]
        self.recent_losses = list(state["recent_losses"])
        self.rewinds = state["rewinds"]
        self.owes_evaluation = state["owes_evaluation"]

    def rewind(self, step: int, position: int, restore: Callable[["TrainState", int], None]) -> None:
        """Goes back to ``step`` (``restore`` loads its checkpoint), and on with the data from ``position``.

        Weights, optimizer and metrics become those of that step. The counters of rewinds and skipped steps, the best
        value and the corrupt images stay as they are: they are about what happened, not about the weights.
        """
        rewinds, skipped_steps, best = self.rewinds, self.skipped_steps, self.best
        corrupt, bad = self.corrupt, self.bad
        restore(self, step)
        self.rewinds, self.skipped_steps, self.best = rewinds + 1, skipped_steps, best
        self.corrupt, self.bad = corrupt, bad
        self.position = self.loader.position = position

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The module in eval mode with the weights to evaluate; training goes on with its own afterwards."""
        own, module = None, unwrapped(self.train_step)
        if self.ema is not None:
            own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            module.load_state_dict(self.ema.tensors)
        self.train_step.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            if own is not None:
                module.load_state_dict(own)
            self.train_step.train()
