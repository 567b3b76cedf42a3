"""One optimizer step, which changes nothing if a loss or gradient is not finite, and for which the CPU never waits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.computing import computing
from mmlm.core.loss import Loss
from mmlm.core.precision import Precision
from mmlm.core.stop import StopRequest
from mmlm.core.views import StepKey
from mmlm.model.text_places import TextPlaces
from mmlm.optim.gated import BuffersBefore, step_unless
from mmlm.optim.optimizers import clip_gradients
from mmlm.training.agreement import MadeStep, agree
from mmlm.training.diagnosis import WeightsBefore
from mmlm.training.replicated import unwrapped
from mmlm.training.train_state import TrainState
from mmlm.training.work import CountPlaces, Work


class Differentiate(Protocol):
    """Makes the gradients of a batch; ``mmlm.training.gradients.backward`` is the one of real training."""

    def __call__(
        self,
        train_step: nn.Module,
        batches: Sequence[Batch],
        step_key: StepKey,
        diagnose: bool = False,
        scale: Tensor | None = None,
    ) -> Loss:
        """Adds the gradients of the loss of ``batches`` (the micro-batches of this rank) to the parameters.

        Gradients are ``scale`` (float32[], the loss scale) times larger if there is one. Returns the loss, unscaled and
        without gradient, with its diagnosis if ``diagnose`` is true.
        """
        ...


@dataclass(frozen=True)
class Update:
    """How a step is made; see ``FitSettings``."""

    differentiate: Differentiate
    device: torch.device
    precision: Precision
    micro_batch_size: int | None
    clip_norm: float | None
    places: CountPlaces | None = None

    def __call__(self, state: TrainState, batch: Batch, diagnosed: bool, request: StopRequest) -> MadeStep:
        """Updates ``state`` by a batch, unless a loss or gradient of any rank is not finite; does not count the step.

        The same reduction tells every rank whether this one was asked to stop (``request``). The CPU waits for the
        device only where the step is diagnosed.
        """
        # Forward and backward. Batch norm changes its buffers in forward, so they are remembered in case the step
        # turns out not to count.
        buffers = BuffersBefore(state.train_step)
        scale = None if state.loss_scale is None else state.loss_scale.scale
        batches = [batch] if self.micro_batch_size is None else batch.split(self.micro_batch_size)
        work = Work.of(batches, TextPlaces() if self.places is None else self.places(batches, state.step))
        loss = self._backward(state, batches, diagnosed, scale)
        norm = self._clip(state)

        # Whether the update is applied is known on the device only: reading it here would make the CPU wait. So the
        # optimizer and the buffers are given the answer as a tensor and choose by it.
        result = agree(loss.total, norm, request.flags(), scale, len(batch.corrupt_at))
        if state.loss_scale is not None:
            state.loss_scale.update(result.overflowed, ~result.skip)
        before = WeightsBefore(state.train_step) if diagnosed else None
        step_unless(state.optimizer, result.skip)
        state.optimizer.zero_grad(set_to_none=True)
        buffers.put_back(result.skip)
        ratios = {} if before is None else before.update_ratios()
        if state.ema is not None:
            state.ema.update(unwrapped(state.train_step), state.step)
        bad = (batch.corrupt, batch.corrupt_at)
        return MadeStep(state.step, batch.position, batch.ids, *bad, loss, norm, ratios, result, work)

    def _backward(self, state: TrainState, batches: Sequence[Batch], diagnosed: bool, scale: Tensor | None) -> Loss:
        batches = [micro_batch.to(self.device) for micro_batch in batches]
        with computing(self.device, self.precision):
            return self.differentiate(state.train_step, batches, StepKey(state.seed, state.step), diagnosed, scale)

    def _clip(self, state: TrainState) -> Tensor:
        """Unscales and clips the gradients; returns their norm before clipping, float[]."""
        parameters = list(state.train_step.parameters())
        if state.loss_scale is not None:
            state.loss_scale.unscale(parameters)
        return clip_gradients(parameters, math.inf if self.clip_norm is None else self.clip_norm)
