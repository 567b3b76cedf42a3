"""The settings of training: how long, how carefully, and what is done how often."""

from dataclasses import dataclass, field

from mmlm.core.errors import ArgumentError
from mmlm.core.precision import Precision
from mmlm.core.ranges import check_above_zero, check_at_least
from mmlm.training.spikes import SpikeSettings


@dataclass
class FitSettings:
    """How long and how carefully to train."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 128
    """Examples a step, over all ranks."""
    micro_batch_size: int | None = None
    """Examples a forward and backward pass, on each rank; the gradient is that of the whole batch all the same, only
    slower and in less memory. null takes all at once."""
    precision: Precision = Precision.auto
    """``bf16`` (autocast, float32 parameters), ``fp16`` (likewise, with a dynamic loss scale), ``fp32``, or ``auto``:
    bf16 where the device is fast in it, else fp32. A run goes on in what it began with."""
    clip_norm: float | None = 1.0
    """Largest L2 norm of all gradients together; null turns clipping off."""
    max_skipped_steps: int = 3
    """Optimizer steps of a run whose update may be left out because the loss or a gradient was infinite or not a
    number; one more ends it. (Gradients that overflow in fp16 lower the loss scale and do not count.)"""
    spike: SpikeSettings = field(default_factory=SpikeSettings)
    ema_decay: float | None = None
    """Decay of the moving average of the weights that is evaluated and exported, such as 0.999; null turns it off."""
    activation_checkpointing: bool = False
    """Keep nothing but the input of each block of the model for the backward pass and compute it again there: the same
    gradients to the last bit, in less memory and about a third more time."""
    compile: bool = False
    """Compile each block of the model (``torch.compile``) for training; equal up to rounding. The first steps take
    minutes."""
    log_every: int = 20
    """Optimizer steps between rows of training metrics."""
    diagnose_every: int | None = 100
    """Optimizer steps between diagnoses (the first step has one): gradients of each objective at the bridge, spread of
    the embeddings, and how far a step moves the weights. It changes nothing of what is trained; null makes none."""
    eval_every: int | None = 500
    """Optimizer steps between evaluations; null evaluates at the end only."""
    save_every: int | None = 500
    """Optimizer steps between checkpoints; null saves at the end only."""
    keep_last: int = 2
    """Checkpoints kept besides the best one."""
    best_metric: str | None = None
    """Evaluation value, larger is better, that decides the best checkpoint, such as val_style/captioning/CIDEr-D; it is
    then evaluated before the first step too. null keeps no best one."""

    def __post_init__(self) -> None:
        check_above_zero(
            self,
            "steps",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "diagnose_every",
            "eval_every",
            "save_every",
            "keep_last",
            "clip_norm",
        )
        check_at_least(self, {"max_skipped_steps": 0})
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ArgumentError(f"ema_decay: {self.ema_decay} must lie in [0, 1), such as 0.999; null turns it off")
