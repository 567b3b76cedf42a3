"""One optimizer step: it changes nothing if it is not finite, and the host waits for nothing of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmlm.core.flow import Batch, Loss, StepKey
from mmlm.core.precision import Precision, computing
from mmlm.core.stop import StopRequest
from mmlm.optim.gated import BuffersBefore, step_unless
from mmlm.optim.optimizers import clip_gradients
from mmlm.training.agreement import MadeStep, agree
from mmlm.training.diagnosis import WeightsBefore
from mmlm.training.replicated import unwrapped
from mmlm.training.train_state import TrainState

Differentiate = Callable[[nn.Module, Sequence[Batch], StepKey, bool, Tensor | None], Loss]
"""Adds the gradients of a batch, given in micro-batches, to the parameters, times the last argument (float32[], the
loss scale) if there is one; returns the loss, unscaled and without gradient, with its diagnosis if the argument before
asks for it."""


@dataclass(frozen=True)
class Update:
    """How a step is made; see ``FitSettings``."""

    differentiate: Differentiate
    device: torch.device
    precision: Precision
    micro_batch_size: int | None
    clip_norm: float | None

    def __call__(self, state: TrainState, batch: Batch, diagnosed: bool, request: StopRequest) -> MadeStep:
        """Updates ``state`` by a batch, unless a loss or gradient of any rank is not finite; does not count the step.

        Every rank is told of this rank's ``request``. All of it happens on the device, but for a step's diagnosis.
        """
        buffers = BuffersBefore(state.train_step)
        scale = None if state.loss_scale is None else state.loss_scale.scale
        loss = self._backward(state, batch, diagnosed, scale)
        norm = self._clip(state)
        agreement = agree(loss.total, norm, request.flags(), scale)
        if state.loss_scale is not None:
            state.loss_scale.update(agreement.overflowed, ~agreement.skip)
        before = WeightsBefore(state.train_step) if diagnosed else None
        step_unless(state.optimizer, agreement.skip)
        state.optimizer.zero_grad(set_to_none=True)
        buffers.put_back(agreement.skip)
        ratios = {} if before is None else before.update_ratios()
        if state.ema is not None:
            state.ema.update(unwrapped(state.train_step), state.step)
        return MadeStep(state.step, state.loader.position, batch.ids, batch.corrupt, loss, norm, ratios, agreement)

    def _backward(self, state: TrainState, batch: Batch, diagnosed: bool, scale: Tensor | None) -> Loss:
        batches = [batch] if self.micro_batch_size is None else batch.split(self.micro_batch_size)
        batches = [micro_batch.to(self.device) for micro_batch in batches]
        with computing(self.device, self.precision):
            return self.differentiate(state.train_step, batches, StepKey(state.seed, state.step), diagnosed, scale)

    def _clip(self, state: TrainState) -> Tensor:
        """Leaves the gradients that the optimizer is to see; returns their norm from before clipping."""
        parameters = list(state.train_step.parameters())
        if state.loss_scale is not None:
            state.loss_scale.unscale(parameters)
        return clip_gradients(parameters, math.inf if self.clip_norm is None else self.clip_norm)
