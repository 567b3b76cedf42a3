"""Keyed starts: two experiments of one seed start from the same weights, but for what differs between them.

"Drawn" are the parameters that start at random; they are told from the others by being many different numbers.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmlm.bench.measure import build_trainer
from mmlm.cli.hydra_config import compose
from mmlm.experiment.build import build_freeze, build_model, build_objective, sizes_with_teacher
from mmlm.experiment.config import CONFIG_DIR, Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.device import seed_everything
from tests.equality import same

VOCABULARY = 300
SMALL = ("experiment=caption_base", "data=emoji", "tokenizer=byte_pair", "model.width=32", "model.embedding_width=16")
SHALLOW = {
    "encoder=vit": ("encoder.depth=2",),
    "encoder=timm": ("encoder.settings={depth: 2}",),
    "encoder=hf_vit_tiny": ("encoder.settings.num_hidden_layers=2",),
}
"""What makes large encoders small."""
TOWERS = (
    "encoder.pool=mean",
    "bridge=none",
    "text_encoder=transformer",
    "decoder=none",
    "objective.weights.captioning=0",
    "evaluators=retrieval",
)
"""A model without bridge and decoder; its encoder is told to pool."""
NEED_A_PATH = {"hugging_face", "hugging_face_gated", "efficientnet_lite0", "clip", "minilm"}
"""Options of pretrained weights, whose architecture is read from a hub, a folder or a package."""
SLOTS = ("encoder", "bridge", "text_encoder", "decoder", "freeze", "objective")


def options(slot: str) -> list[str]:
    """The option files of a slot that can be built here and joined with the other slots as they are."""
    names = {file.stem for file in (CONFIG_DIR / slot).glob("*.yaml")} - NEED_A_PATH
    return sorted(names - {"none"} if slot in ("bridge", "decoder") else names)


@functools.cache
def config_of(*overrides: str) -> Config:
    """The checked config of a small experiment, with a text encoder so that every slot is filled."""
    shallow = SHALLOW.get(overrides[0], ()) if overrides else ()
    return check_config(compose([*SMALL, "text_encoder=transformer", *overrides, *shallow]))


@functools.lru_cache(maxsize=4)
def start_of(*overrides: str) -> dict[str, Tensor]:
    """The first value of every parameter of an experiment of these overrides, by its name."""
    return start(config_of(*overrides))


def start(config: Config) -> dict[str, Tensor]:
    """The first value of every parameter, put together as ``build_experiment`` does; asserts that no generator moved.

    Where an objective needs a teacher, its embeddings are wider than the student's.
    """
    seed_everything(config.seed)
    before = generators()
    model = build_model(config, VOCABULARY)
    build_freeze(config).add_adapters(model)
    objective = build_objective(config)
    sizes = model.sizes
    objective.connect(sizes_with_teacher(config, sizes, dataclasses.replace(sizes, embedding_width=24)))
    assert generators() == before
    both = nn.ModuleDict({"model": model, "objective": objective})
    # A name without what an adapter puts around its layer.
    return {
        name.removeprefix("model.").replace(".base_layer.", "."): value.detach()
        for name, value in both.named_parameters()
    }


def generators() -> tuple[object, ...]:
    """The states of all generators."""
    numpy_state = [value.tolist() if isinstance(value, np.ndarray) else value for value in np.random.get_state()]
    return torch.get_rng_state().tolist(), torch.initial_seed(), numpy_state, random.getstate()


def drawn(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that start at random: the others are one number, or two (the biases of an LSTM)."""

    def some(value: Tensor) -> Tensor:
        return value.flatten()[:: max(1, value.numel() // 97)]

    return {name: value for name, value in weights.items() if len(some(value).unique()) > 2}


def slot_of(name: str) -> str:
    return name.split(".")[0]


def compared(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    """Names of what is drawn and has one shape in both. (A width may come from the part that differs.)"""
    return {name for name, value in drawn(one).items() if name in other and other[name].shape == value.shape}


def is_written_to_residual(name: str) -> bool:
    """Whether a weight is divided by the root of the number of layers, so that it depends on how many there are."""
    return name.endswith((".output.weight", "feed_forward.2.weight"))


def assert_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: set[str]) -> None:
    """Bit-equal; for writers into a residual stream up to their scale, which is that of the depth."""
    assert names
    for name in names:
        a, b = one[name], other[name]
        if is_written_to_residual(name):
            torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(a, b), name


# Slots


@pytest.fixture(scope="module", params=[(slot, option) for slot in SLOTS for option in options(slot)], ids="=".join)
def chosen(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A slot and an option of it. The tests of one option come one after the other, so that few starts are kept."""
    return request.param


def test_another_option_leaves_the_other_slots_as_they_are(chosen):
    slot, option = chosen
    one, other = start_of(), start_of(f"{slot}={option}")
    names = {name for name in compared(one, other) if slot_of(name) != slot}
    own = {"text_projection", "image_projection", "encoder", "bridge", "text_encoder", "decoder"} - {slot}
    if slot in ("encoder", "bridge"):  # it has the width of what pools
        own -= {"image_projection"}
    if (slot, option) == ("text_encoder", "own"):
        own -= {"text_projection"}
    assert {slot_of(name) for name in names} >= own
    for name in names:
        assert torch.equal(one[name], other[name]), name


def test_two_towers_start_as_the_whole_model():
    one, other = start_of("encoder.pool=mean", "bridge=linear"), start_of(*TOWERS)
    names = compared(one, other)
    assert {slot_of(name) for name in names} == {"encoder", "text_encoder", "image_projection", "text_projection"}
    assert same({name: one[name] for name in names}, {name: other[name] for name in names})


def test_another_seed_changes_all_that_is_drawn(chosen):
    option = "=".join(chosen)
    one, other = start_of(option), start_of(option, "seed=1")
    assert drawn(one).keys() == drawn(other).keys()
    for name, value in drawn(one).items():
        assert not torch.equal(value, other[name]), name


def test_no_two_parameters_start_alike(chosen):
    # One key for two of them would give both the same numbers, up to their scale.
    seen: dict[tuple[float, ...], str] = {}
    for name, value in drawn(start_of("=".join(chosen))).items():
        if value.numel() >= 16:  # torch draws these as a whole, so that a shorter one is the beginning of a longer one
            first = value.flatten()[:16].double()
            key = tuple((first / first.norm()).round(decimals=4).tolist())
            assert key not in seen, f"{name} is {seen[key]}"
            seen[key] = name


# Inside of a slot

DEEPER = {
    "decoder.unimodal_layers": ("", "decoder.unimodal_layers=3"),
    "decoder.multimodal_layers": ("", "decoder.multimodal_layers=3"),
    "decoder.layers": ("decoder=lstm", "decoder.num_layers=3"),
    "decoder.gated_blocks": ("decoder=gpt2_tiny_gated", "decoder.cross_every=2"),
    "text_encoder.layers": ("", "text_encoder.num_layers=4"),
    "bridge.layers": ("bridge=perceiver", "bridge.depth=4"),
    "bridge.layers ": ("bridge=q_former", "bridge.depth=4"),
    "objective.objectives.reconstruction.blocks": (
        "objective=coca_reconstruction",
        "objective.objectives.reconstruction.depth=4",
    ),
}
"""Repeated blocks of our own: the overrides of a model with some, and of one with another number of them."""


@pytest.mark.parametrize("blocks", DEEPER)
def test_another_depth_leaves_the_first_blocks_as_they_are(blocks):
    option, deeper = DEEPER[blocks]
    base = (option,) if option else ()
    one, other = start_of(*base), start_of(*base, deeper)
    names = compared(one, other)
    assert any(name.startswith(f"{blocks.strip()}.0.") for name in names)
    assert len(other) != len(one)
    # Everything, but for the layers of an LSTM that are the last in one and not in the other: they have the same names.
    assert names == (drawn(one).keys() & drawn(other).keys())
    assert_alike(one, other, names)
    if option == "decoder=gpt2_tiny_gated":  # the language model itself is as deep as before
        assert {name for name in names if name.startswith("decoder.lm.")}


@pytest.mark.parametrize("change", ["decoder.alternating=true", "decoder.feed_forward=swiglu", "decoder.fusion=prefix"])
def test_another_sub_layer_leaves_the_others_as_they_are(change):
    one, other = start_of(), start_of(change)
    names = compared(one, other)
    assert {"decoder.multimodal_layers.0.self_attention.query.weight", "decoder.token_embedding.weight"} <= names
    assert_alike(one, other, names)


def test_adapters_start_by_the_module_they_are_on():
    one, other = start_of("freeze=lora"), start_of("freeze=lora", "freeze.lora.parts=[decoder]", "bridge=q_former")
    names = {name for name in compared(one, other) if ".lora_A." in name}
    assert names
    assert {slot_of(name) for name in names} == {"decoder"}
    assert_alike(one, other, compared(one, other) - {name for name in one if slot_of(name) == "bridge"})


# Objectives


def test_an_objective_more_leaves_the_others_as_they_are():
    found = ("coca_matching", "coca_reconstruction", "masked_lm", "coca_self_distillation", "coca_distillation")
    nodes = [config_of(f"objective={option}").objective for option in found]
    target = nodes[0]["_target_"]
    parts = {name: part for node in nodes for name, part in node["objectives"].items()}

    def with_objectives(*names: str) -> dict[str, Tensor]:
        node = {
            "_target_": target,
            "objectives": {name: parts[name] for name in names},
            "weights": dict.fromkeys(names, 1),
        }
        weights = start(dataclasses.replace(config_of(), objective=node))
        return {name: value for name, value in weights.items() if name.startswith("objective.")}

    every = with_objectives(*parts)
    assert same(every, with_objectives(*reversed(parts)))
    alone = {name: with_objectives(name) for name in parts}
    assert same(every, {name: value for weights in alone.values() for name, value in weights.items()})
    have_weights = {name for name, weights in alone.items() if drawn(weights)}
    assert have_weights == {
        "matching",
        "reconstruction",
        "masked_lm",
        "self_distillation",
        "masked_prediction",
        "embedding_distillation",
    }


# The commands


def test_a_run_starts_with_the_generators_as_the_seed_left_them(build: Callable[..., object]):
    seed_everything(0)
    expected = generators()
    for overrides in ((), ("bridge=q_former", "decoder=gpt2_tiny", "freeze=lora", "objective=coca_reconstruction")):
        build("seed=0", *overrides)
        assert generators() == expected


def test_the_benchmark_starts_where_a_run_does(build, tiny_config):
    overrides = ("bridge=q_former", "objective=coca_reconstruction", "seed=3")
    experiment = build(*overrides)
    trainer = build_trainer(tiny_config(*overrides), 4, experiment.tokenizer.vocab_size, torch.device("cpu"))
    assert same(experiment.state.train_step.state_dict(), trainer.train_step.state_dict())
