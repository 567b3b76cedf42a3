"""Time, memory and FLOPs of a training step of one model, measured on random data."""

import gc
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch, Caption
from mmlm.core.computing import computing
from mmlm.core.precision import Precision
from mmlm.core.stop import StopRequest
from mmlm.core.views import StepKey
from mmlm.experiment.build import build_freeze, build_model, build_objective, build_optim
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import Config
from mmlm.experiment.device import seed_everything
from mmlm.model.costs import ModelCosts, model_costs
from mmlm.model.model import ImageTextModel
from mmlm.optim.loss_scale import LossScale
from mmlm.optim.optimizers import Optimizer
from mmlm.training.gradients import backward
from mmlm.training.train_state import TrainState
from mmlm.training.train_step import TrainStep, inner
from mmlm.training.update import Differentiate, Update

SHORTEST_CAPTION = 3
"""Length in tokens: start, one token, end."""
FIRST_TOKEN = 3
"""Smallest random token id; those below are special in most vocabularies."""


def random_batch(batch_size: int, image_size: int, max_tokens: int, vocab_size: int) -> Batch:
    """B random images with one random caption each, on the CPU.

    Captions have evenly spread lengths from 3 to ``max_tokens`` tokens. Equal arguments give an equal batch.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(max_tokens, SHORTEST_CAPTION, batch_size).round().long()
    tokens = torch.randint(FIRST_TOKEN, vocab_size, (batch_size, max_tokens), generator=generator)
    padding = torch.arange(max_tokens)[None, :] >= lengths[:, None]
    rows = torch.arange(batch_size)
    pixels = (batch_size, 3, image_size, image_size)
    return Batch(
        images=torch.randint(0, 256, pixels, generator=generator, dtype=torch.uint8),
        tokens=tokens.masked_fill(padding, 0),
        lengths=lengths,
        image_index=rows,
        image_concept=rows,
        caption_concept=rows,
        caption_key=rows,
        ids=tuple(map(str, range(batch_size))),
        captions=(Caption(""),) * batch_size,
    )


class SameBatch:
    """A stand-in for the loader of a run: it gives one batch again and again, and its position stays 0."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.position = 0

    def epoch_at(self, position: int) -> int:
        """The same epoch everywhere: the batch never changes."""
        return 0

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch)


@dataclass(frozen=True)
class Trainer:
    """A model with its optimizer and the one batch that it trains on again and again."""

    config: Config
    state: TrainState
    update: Update
    """The optimizer step, the same code that ``fit`` calls."""
    batch: Batch
    allocated_before: int
    """Bytes that were allocated on a CUDA device before this model was built; 0 on a CPU."""

    @classmethod
    def of(
        cls,
        config: Config,
        train_step: nn.Module,
        optimizer: Optimizer,
        batch: Batch,
        device: torch.device,
        allocated_before: int,
        differentiate: Differentiate = backward,
    ) -> "Trainer":
        """A trainer in the precision and with the gradient clipping of ``config``.

        The batch is never split into micro-batches and there is no moving average of the weights, whatever ``config``
        says of these: the figures are those of the parts alone.
        """
        precision, clip_norm = config.train.precision, config.train.clip_norm
        # As ``fit`` begins a run: without a loss scale the small gradients of float16 would be 0.
        scale = LossScale.start(device) if precision is Precision.fp16 else None
        state = TrainState(train_step, optimizer, SameBatch(batch), loss_scale=scale)
        return cls(config, state, Update(differentiate, device, precision, None, clip_norm), batch, allocated_before)

    @property
    def device(self) -> torch.device:
        """The device that the model and the batch are on."""
        return self.update.device

    @property
    def train_step(self) -> nn.Module:
        """The model together with its objective."""
        return self.state.train_step

    @property
    def model(self) -> ImageTextModel:
        """The model itself."""
        return inner(self.train_step).model

    def step(self) -> None:
        """One optimizer step, made by ``Update`` as in training.

        The step count stays 0, so that every call does the same work: schedules of weights and freeze plans do not
        move on. The result is not read, so the CPU does not wait for the device.
        """
        self.update(self.state, self.batch, diagnosed=False, request=StopRequest())

    def seconds(self) -> float:
        """Wall-clock seconds of one step."""
        self._wait()
        begun = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - begun

    def costs(self) -> ModelCosts:
        """Parameters and FLOPs of each part, in the views and pairs that the objective asks for."""
        data, objective = self.config.data, inner(self.train_step).objective
        with computing(self.device, self.config.train.precision):
            return model_costs(self.model, data.image_size, data.max_tokens, objective.views, objective.pairs_per_image)

    def memory(self) -> int:
        """Bytes that a training step needs. To be called after a step: optimizers make their state in the first one.

        On a CUDA device it is PyTorch's own peak of allocated memory over a step. A CPU has no such counter, and the
        size of the process depends on what ran before. So there it is the sum of everything that has to be held at
        once, which is the same every time: parameters, gradients, the optimizer's state, and the tensors that autograd
        saves in the forward pass for the backward pass.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step()
            return torch.cuda.max_memory_allocated(self.device) - self.allocated_before
        return self._held()

    def _held(self) -> int:
        optimizer, scale = self.state.optimizer, self.state.loss_scale
        permanent = _storages(
            [*self.train_step.parameters(), *self.train_step.buffers(), *_tensors(optimizer.state_dict())]
        )
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved.update(_storages([tensor]))
            return tensor

        # The hooks see every tensor that autograd saves. Storages are counted once, however many views of them are
        # saved, and parameters that are saved are held anyway.
        with (
            computing(self.device, self.update.precision),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            self.update.differentiate(
                self.train_step, [self.batch], StepKey(), False, None if scale is None else scale.scale
            )
        gradients = _storages(p.grad for p in self.train_step.parameters() if p.grad is not None)
        optimizer.zero_grad(set_to_none=True)
        activations = sum(size for address, size in saved.items() if address not in permanent)
        return sum(permanent.values()) + sum(gradients.values()) + activations

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build_trainer(config: Config, batch_size: int, vocab_size: int, device: torch.device) -> Trainer:
    """The model of a config with its objective, optimizer and freeze plan, of random weights. Raises UserError."""
    check_compatible(config)
    seed_everything(config.seed)
    gc.collect()  # frees the models before, whose bytes would count as this one's
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    # Pretrained weights cost what random ones do.
    model = build_model(config, vocab_size, load_weights=False)
    plan = build_freeze(config)
    plan.add_adapters(model)
    objective = build_objective(config)
    objective.connect(model.sizes)
    train_step = TrainStep(model, objective, plan).to(device).train()
    optimizer = build_optim(config)(train_step, train_step.learning_rate_scales())
    batch = random_batch(batch_size, config.data.image_size, config.data.max_tokens, vocab_size).to(device)
    return Trainer.of(config, train_step, optimizer, batch, device, before)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the steps of two models that took turns, one step each."""

    reference: Sequence[float]
    """Seconds of the steps of the reference."""
    cell: Sequence[float]
    """Seconds of the steps of the cell; step i came right after step i of the reference."""

    @property
    def ratio(self) -> float:
        """Median of the cell's time over the reference's time right before it: a busy moment slows both alike."""
        return statistics.median(b / a for a, b in zip(self.reference, self.cell, strict=True))

    @property
    def seconds(self) -> float:
        """Median of the cell's times."""
        return statistics.median(self.cell)


def take_turns(reference: Trainer, cell: Trainer, steps: int) -> StepTimes:
    """Times ``steps`` steps of each model, the two taking turns."""
    pairs = [(reference.seconds(), cell.seconds()) for _ in range(steps)]
    return StepTimes(*zip(*pairs, strict=True))


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The size in bytes of each distinct storage of ``tensors``, by its address."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _tensors(state: object) -> Iterator[Tensor]:
    """Every tensor in an optimizer's state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
