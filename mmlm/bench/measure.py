"""One model that trains on random data, and what a step of it takes: time, memory, FLOPs."""

import gc
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.core.flow import Batch, Caption, StepKey
from mmlm.core.precision import computing
from mmlm.experiment.build import build_freeze, build_model, build_objective, build_optim
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import Config
from mmlm.experiment.device import seed_everything
from mmlm.model.costs import ModelCosts, model_costs
from mmlm.model.model import ImageTextModel
from mmlm.optim.optimizers import Optimizer
from mmlm.training.train_step import TrainStep

SHORTEST_CAPTION = 3
"""Tokens: start, one more, end."""
FIRST_TOKEN = 3
"""Smallest random token id; those below are special in most vocabularies."""


def random_batch(batch_size: int, image_size: int, max_tokens: int, vocab_size: int) -> Batch:
    """B random images with one random caption each, on the CPU.

    Captions have evenly spread lengths from 3 to ``max_tokens`` tokens. Always the same for the same arguments.
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


@dataclass(frozen=True)
class Trainer:
    """A model with its optimizer and the one batch that it trains on again and again."""

    config: Config
    train_step: TrainStep
    optimizer: Optimizer
    batch: Batch
    device: torch.device
    allocated_before: int
    """Bytes that were allocated on a CUDA device before this model was built; 0 on a CPU."""

    @property
    def model(self) -> ImageTextModel:
        """The model itself."""
        return cast(ImageTextModel, self.train_step.model)

    def step(self) -> None:
        """Forward, backward, clipping and the optimizer's step, as training does them."""
        with computing(self.device, self.config.train.precision):
            self.train_step(self.batch, StepKey()).total.backward()
        if self.config.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.train_step.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Wall-clock seconds of one step."""
        self._wait()
        begun = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - begun

    def costs(self) -> ModelCosts:
        """Parameters and FLOPs of each part, in the views and pairs that the objective asks for."""
        data, objective = self.config.data, self.train_step.objective
        with computing(self.device, self.config.train.precision):
            return model_costs(self.model, data.image_size, data.max_tokens, objective.views, objective.pairs_per_image)

    def memory(self) -> int:
        """Bytes that a training step needs. Take it after a step: optimizers make their state in the first one.

        On a CUDA device PyTorch's own peak of allocated memory over a step. A CPU has no such counter, and the size of
        the process depends on what ran before, so there it is what has to be held at once, which is the same every
        time: parameters, gradients, the optimizer's state, and what autograd saves from forward for backward.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step()
            return torch.cuda.max_memory_allocated(self.device) - self.allocated_before
        return self._held()

    def _held(self) -> int:
        permanent = _storages(
            [*self.train_step.parameters(), *self.train_step.buffers(), *_tensors(self.optimizer.state_dict())]
        )
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved.update(_storages([tensor]))
            return tensor

        with computing(self.device, self.config.train.precision):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = self.train_step(self.batch, StepKey()).total
            loss.backward()
        gradients = _storages(p.grad for p in self.train_step.parameters() if p.grad is not None)
        self.optimizer.zero_grad(set_to_none=True)
        activations = sum(size for address, size in saved.items() if address not in permanent)
        return sum(permanent.values()) + sum(gradients.values()) + activations

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build_trainer(config: Config, batch_size: int, vocab_size: int, device: torch.device) -> Trainer:
    """The model of a config with its objective, optimizer and freeze plan, of random weights. Raises UserError."""
    check_compatible(config)
    seed_everything(config.seed)
    gc.collect()  # what is left of other models
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
    return Trainer(config, train_step, optimizer, batch, device, before)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of steps that were taken in turn, one of each model at a time."""

    reference: Sequence[float]
    cell: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median of the cell's time over that of the reference right before it: a slow spell hits both."""
        return statistics.median(b / a for a, b in zip(self.reference, self.cell, strict=True))

    @property
    def seconds(self) -> float:
        """Median of the cell's times."""
        return statistics.median(self.cell)


def take_turns(reference: Trainer, cell: Trainer, steps: int) -> StepTimes:
    """Times ``steps`` steps of both, in turn."""
    pairs = [(reference.seconds(), cell.seconds()) for _ in range(steps)]
    return StepTimes(*zip(*pairs, strict=True))


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each distinct storage, by its address."""
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
