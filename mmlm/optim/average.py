"""The exponential moving average (EMA) of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmlm.core.distributed import local_part
from mmlm.core.errors import UserError


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
        # All tensors in one fused call: one by one, the launches of a large model's tensors take longer than the sums.
        # The average is a sum entry by entry, so that each rank updates its own shard and nothing is sent.
        averages, values = [], []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                averages.append(local_part(self.tensors[name]))
                values.append(local_part(tensor.detach()))
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies saved averages into this one; ``tensors`` are named as in ``state_dict()`` of the module."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)
