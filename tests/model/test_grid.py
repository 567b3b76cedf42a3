"""Each cell of encoder x bridge x text encoder x decoder x freeze plan is built or refused; a covering set learns.

The whole grid is put together on the meta device. Cells that together hold every pair of options take three real steps:
every tensor that trains has had a finite gradient that is not 0, every frozen one none, and its bytes are the same.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlm.cli.hydra_config import compose
from mmlm.core.errors import UserError
from mmlm.core.flow import Batch, StepKey
from mmlm.experiment.build import build_freeze, build_model
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR, Config, check_config
from mmlm.experiment.parts import build_part
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.freeze import FreezePlan, check_plan
from mmlm.optim.lora import merge_adapters
from mmlm.training.gradients import backward
from mmlm.training.train_step import TrainStep

SLOTS = ("encoder", "bridge", "text_encoder", "decoder", "freeze")
NEED_A_PATH = {
    ("encoder", "hugging_face"),
    ("encoder", "efficientnet_lite0"),
    ("text_encoder", "hugging_face"),
    ("text_encoder", "clip"),
    ("text_encoder", "minilm"),
    ("decoder", "hugging_face"),
    ("decoder", "hugging_face_gated"),
}
"""Options of pretrained weights, whose architecture is read from a hub, a folder or a package."""
POOLED = "+pool=mean"
"""Marks an encoder that pools."""
POOLING = ("vit_small_images", "convnext_small_images")
"""Encoders that stand in the grid a second time, pooling."""


def options(slot: str) -> list[str]:
    """The option files of a slot that need no path; an encoder may stand twice."""
    names = sorted(file.stem for file in (CONFIG_DIR / slot).glob("*.yaml") if (slot, file.stem) not in NEED_A_PATH)
    return names + [f"{name}{POOLED}" for name in names if slot == "encoder" and name in POOLING]


@dataclass(frozen=True)
class Cell:
    """One option of each slot."""

    encoder: str
    bridge: str
    text_encoder: str
    decoder: str
    freeze: str

    @property
    def pools(self) -> bool:
        """Whether the encoder pools."""
        return self.encoder.endswith(POOLED)

    @property
    def two_towers(self) -> bool:
        """Whether nothing captions: trained without the captioning loss."""
        return self.decoder == "none"

    @property
    def one_memory_token(self) -> bool:
        """Whether 2 x 2 patches are shuffled into one: attention over it has no choice, and no gradient."""
        return self.encoder in ("vit", "timm") and self.bridge == "pixel_shuffle"

    @property
    def language_model(self) -> bool:
        """Whether the decoder is a Hugging Face language model."""
        return self.decoder.split("_")[0] in ("gpt2", "llama", "qwen", "smollm")


def whole_grid() -> Iterator[Cell]:
    """Every cell."""
    return (Cell(*names) for names in itertools.product(*map(options, SLOTS)))


REFUSALS: Sequence[tuple[str, Callable[[Cell], bool]]] = (
    # The bridge itself.
    (r"bridge.num_queries: null leaves nothing to pool", lambda c: c.bridge == "patches" and c.pools),
    (r"bridge.contrastive: ", lambda c: c.bridge in ("pooler_parallel", "pooler_cascaded") and c.pools),
    # Which parts there are.
    (r"bridge: the decoder needs one to see the image", lambda c: c.bridge == "none" and not c.two_towers),
    (r"bridge: there is no decoder to read its memory", lambda c: c.bridge != "none" and c.two_towers),
    (r"text_encoder: without a decoder there is nothing", lambda c: c.two_towers and c.text_encoder == "own"),
    (r"encoder.pool: without a bridge the encoder has to pool", lambda c: c.bridge == "none" and not c.pools),
    # What the plan names.
    (r"freeze.lora.parts: the model has no 'decoder'", lambda c: c.freeze == "lora" and c.two_towers),
    (
        r"freeze.frozen: the model has no 'text_encoder'",
        lambda c: c.freeze == "text_locked" and c.text_encoder == "own",
    ),
    (r"freeze.frozen: ", lambda c: c.freeze == "lm_frozen" and not c.language_model),
    (r"freeze.trainable: the model has no 'bridge'", lambda c: c.freeze == "bridge_only" and c.bridge == "none"),
)
"""In the order of asking: what the message of a refused cell says, and which cells get it."""


def refusal(cell: Cell) -> str | None:
    """What the message of a cell has to say, or None if it has to be built."""
    return next((message for message, refused in REFUSALS if refused(cell)), None)


def pairwise(cells: Sequence[Cell]) -> list[Cell]:
    """Few of ``cells`` in which every pair of options that stands in some cell stands in one, chosen greedily."""
    left = {pair for cell in cells for pair in _pairs(cell)}
    chosen: list[Cell] = []
    gain: Mapping[Cell, set[tuple[tuple[str, str], ...]]] = {cell: set(_pairs(cell)) for cell in cells}
    while left:
        best = max(cells, key=lambda cell: len(gain[cell] & left))
        chosen.append(best)
        left -= gain[best]
    return chosen


def _pairs(cell: Cell) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations([(slot, getattr(cell, slot)) for slot in SLOTS], 2)


VOCABULARY = 300
STEPS = 3
CELLS = list(whole_grid())
MODEL_SLOTS = ("encoder", "bridge", "text_encoder", "decoder")
SMALL = ("experiment=caption_base", "data=emoji", "tokenizer=byte_pair", "model.width=32", "model.embedding_width=16")

SHALLOW = {
    "encoder=vit": ("encoder.depth=2",),
    "encoder=vit_small_images": ("encoder.depth=2",),
    "encoder=timm": ("encoder.settings={depth: 2}",),
    "encoder=hf_vit_tiny": ("encoder.settings.num_hidden_layers=2",),
    "encoder=convnext_small_images": ("encoder.settings.depths=[1,1,1,1]",),
}
"""What fits together does not depend on how deep an encoder is, and how long it takes to put LoRA on it does."""


@functools.cache
def composed(*overrides: str) -> Config:
    """The checked config of a small experiment."""
    return check_config(compose([*SMALL, *overrides]))


def config_of(cell: Cell) -> Config:
    """The config of a cell. Each option is composed once and put into a copy of the base."""
    parts = {}
    for slot in SLOTS:
        name = getattr(cell, slot)
        pool = ("encoder.pool=mean",) if name.endswith(POOLED) else ()
        option = f"{slot}={name.removesuffix(POOLED)}"
        parts[slot] = getattr(composed(option, *SHALLOW.get(option, ()), *pool), slot)
    towers = ("objective.weights.captioning=0", "evaluators=retrieval") if cell.two_towers else ()
    return dataclasses.replace(composed(*towers), **parts)


@pytest.fixture
def built_once(monkeypatch) -> None:
    """Parts on the meta device are built once for each node and widths: the cells share them."""
    built: dict[str, object] = {}

    def remembered(node: object, slot: str, runtime: Mapping[str, object], plugins: object) -> object:
        if slot not in MODEL_SLOTS:
            return build_part(node, slot, runtime, plugins)
        key = json.dumps([slot, node, runtime])
        if key not in built:
            try:
                built[key] = build_part(node, slot, runtime, plugins)
            except UserError as error:
                built[key] = error
        if isinstance(built[key], UserError):
            raise UserError(str(built[key]))
        return built[key]

    def with_adapters(plan: FreezePlan, model: nn.Module, num_steps: int) -> None:
        try:
            check_plan(plan, model, num_steps)
        finally:
            merge_adapters(model)  # the next cell has these parts again, without adapters

    monkeypatch.setattr("mmlm.experiment.build.build_part", remembered)
    monkeypatch.setattr("mmlm.experiment.compatibility.check_plan", with_adapters)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", options("freeze"))
@pytest.mark.parametrize("encoder", options("encoder"))
@pytest.mark.usefixtures("built_once")
def test_a_cell_is_built_or_refused_with_the_reason(encoder, freeze):
    cells = [cell for cell in CELLS if (cell.encoder, cell.freeze) == (encoder, freeze)]
    assert len(cells) > 100
    for cell in cells:
        expected, said = refusal(cell), None
        try:
            check_compatible(config_of(cell))
        except UserError as error:
            said = str(error)
        if expected is None:
            assert said is None, f"{cell}: {said}"
        else:
            assert said is not None, f"{cell} was built and should have been refused: {expected}"
            assert re.match(expected, said), f"{cell}: {said}"
            assert "\n" not in said


@functools.cache
def covering() -> tuple[Cell, ...]:
    """Cells that are built and can learn, with every pair of options that can stand together in one of them."""
    return tuple(pairwise([cell for cell in CELLS if refusal(cell) is None and not cell.one_memory_token]))


def test_the_covering_set_covers():
    chosen = covering()
    assert {cell.encoder for cell in chosen} == set(options("encoder"))
    assert {(cell.bridge, cell.decoder) for cell in chosen} == {
        (cell.bridge, cell.decoder) for cell in CELLS if refusal(cell) is None
    }


@pytest.mark.parametrize("decoder", options("decoder"))
def test_a_covering_set_of_cells_trains(make_batch, decoder):
    for cell in covering():
        if cell.decoder == decoder:
            train_three_steps(cell, config_of(cell), make_batch)


def train_three_steps(cell: Cell, config: Config, make_batch: Callable[..., Batch]) -> None:
    """Plain SGD on the joint loss (contrastive only for two towers); asserts what the module's docstring says."""
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY)
    plan = build_freeze(config)
    plan.add_adapters(model)
    weights = {"contrastive": 1.0} if cell.two_towers else {"contrastive": 1.0, "captioning": 1.0}
    kinds = {"contrastive": InfoNCE(), "captioning": Captioning()}
    train_step = TrainStep(model, WeightedSum({name: kinds[name] for name in weights}, weights), plan)
    train_step.train()
    frozen = plan.frozen_parameters(model, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lengths, index = (5, 3, 7, 4, 6, 4), (0, 1, 1, 2, 0, 3)
    moved: set[str] = set()
    for step in range(STEPS):
        batch = make_batch(lengths, index, 4, 8, VOCABULARY, config.data.image_size, seed=step)
        train_step.zero_grad(set_to_none=True)
        backward(train_step, (batch,), StepKey())
        with torch.no_grad():
            for name, parameter in train_step.named_parameters():
                if parameter.grad is None:
                    continue
                assert parameter.requires_grad, f"{cell}: {name} is frozen and has a gradient"
                assert parameter.grad.isfinite().all(), f"{cell}: {name} has a gradient that is not finite"
                if parameter.grad.count_nonzero():
                    moved.add(name)
                parameter -= 0.05 * parameter.grad
    trains = {name for name, parameter in train_step.named_parameters() if parameter.requires_grad}
    assert trains == moved, f"{cell}: no gradient for {sorted(trains - moved)}"
    after = model.state_dict()
    for name, parameter in model.named_parameters():
        if parameter in frozen:
            assert torch.equal(after[name], before[name]), f"{cell}: {name} is frozen and has changed"
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            assert torch.equal(after[f"{name}.running_mean"], before[f"{name}.running_mean"]), f"{cell}: {name}"
