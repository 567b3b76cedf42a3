"""What is tried of each slot: builds its parts from a config, and goes through all rules for them."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mmlm.check import (
    bridges,
    decoders,
    encoders,
    evaluators,
    objectives,
    optimizers,
    sources,
    text_encoders,
    tokenizers,
)
from mmlm.check import transforms as image_transforms
from mmlm.check.batch import VOCABULARY, whole_batch
from mmlm.check.exactness import CHECKS as STEP_CHECKS
from mmlm.check.exactness import StepUnderTest
from mmlm.check.modules import GENERAL, ModuleUnderTest
from mmlm.check.ranks import Ranks
from mmlm.check.report import SettingsError, passed
from mmlm.core.errors import UserError
from mmlm.experiment.build import build_optim, build_schedule, build_source, build_transform, unfitted_tokenizer
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import EMPTY_SLOTS
from mmlm.experiment.parts import build_part

PATCH_WIDTH, GRID = 24, (4, 4)
"""What a bridge is tried on."""
MEMORY_WIDTH, NUM_MEMORY = 12, 3
"""What a decoder is tried on."""


def title(slot: str, node: Mapping[str, Any]) -> str:
    """``bridge QFormer``: the slot, and the class or function that the node names."""
    return f"{slot} {str(node['_target_']).rpartition('.')[2]}"


def _with_weights(name: str, modules: Iterator[ModuleUnderTest]) -> Iterator[str]:
    """The general rules for each way in which a part is built; a rule has one line."""
    built = list(modules)
    for check in GENERAL:
        for module in built:
            for line in passed(name, (check,), module):
                if module is built[-1]:
                    yield line


def _in_step(slot: str, config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of a training step, once the parts have been found to fit together."""
    check_compatible(config)
    yield from passed(title(slot, getattr(config, slot)), STEP_CHECKS, StepUnderTest(config, slot, ranks))


def _built(config: Config, slot: str, runtime: Mapping[str, object]) -> Any:
    """The part of a slot; raises SettingsError."""
    try:
        return build_part(getattr(config, slot), slot, runtime, config.plugins)
    except UserError as error:
        raise SettingsError(str(error)) from error


def check_encoder(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of an image encoder."""
    runtime = {"image_size": config.data.image_size, "load_weights": False}
    subject = encoders.EncoderUnderTest(partial(_built, config, "encoder", runtime), config.data.image_size)
    name = title("encoder", config.encoder)
    yield from passed(name, encoders.SIZES, subject)
    yield from _with_weights(name, subject.modules())
    yield from passed(name, encoders.RELATIONS, subject)
    yield from _in_step("encoder", config, ranks)


def check_bridge(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of a bridge."""
    runtime = {"patch_width": PATCH_WIDTH, "grid": GRID, "num_prefix_tokens": 0, "drops_patches": False}

    def make(pool: bool) -> Any:
        return _built(config, "bridge", {**runtime, "pool": pool})

    subject = bridges.BridgeUnderTest(make, PATCH_WIDTH, GRID[0] * GRID[1])
    name = title("bridge", config.bridge)
    yield from passed(name, bridges.SIZES, subject)
    yield from _with_weights(name, subject.modules())
    yield from passed(name, bridges.RELATIONS, subject)
    yield from _in_step("bridge", config, ranks)


def check_text_encoder(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of a separate text tower."""
    runtime = {"vocab_size": VOCABULARY, "max_tokens": config.data.max_tokens, "load_weights": False}
    make = partial(_built, config, "text_encoder", runtime)
    subject = text_encoders.TextEncoderUnderTest(make, whole_batch(1))
    name = title("text_encoder", config.text_encoder)
    yield from passed(name, text_encoders.SIZES, subject)
    yield from _with_weights(name, subject.modules())
    yield from passed(name, text_encoders.RELATIONS, subject)
    yield from _in_step("text_encoder", config, ranks)


def check_decoder(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of a text decoder."""
    text = {"vocab_size": VOCABULARY, "max_tokens": config.data.max_tokens, "load_weights": False}
    runtime = {**text, "memory_width": MEMORY_WIDTH, "num_memory": NUM_MEMORY}

    def make(embeds_text: bool) -> Any:
        return _built(config, "decoder", {**runtime, "embeds_text": embeds_text})

    subject = decoders.DecoderUnderTest(make, MEMORY_WIDTH, NUM_MEMORY, whole_batch(1))
    name = title("decoder", config.decoder)
    yield from passed(name, decoders.SIZES, subject)
    yield from _with_weights(name, subject.modules())
    yield from passed(name, decoders.RELATIONS, subject)
    yield from _in_step("decoder", config, ranks)


def check_objective(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of each objective of a sum."""
    check_compatible(config)
    yield from passed(title("objective", config.objective), objectives.CHECKS, objectives.ObjectivesUnderTest(config))
    yield from _in_step("objective", config, ranks)


def check_data(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of the sources of all splits."""
    nodes = {"data.train": config.data.train}
    nodes |= {f"data.validation.{name}": node for name, node in config.data.validation.items()}
    nodes |= {f"data.test.{name}": node for name, node in config.data.test.items()}
    for slot, node in nodes.items():
        subject = sources.SourceUnderTest(partial(build_source, config, node, slot))
        for line in passed(title(slot, node), sources.CHECKS, subject):
            if slot == "data.train":
                yield line
        yield f"ok  {slot} keeps all rules of a source"


def check_tokenizer(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of a tokenizer, fitted to the captions that the run trains on."""
    source = build_source(config, config.data.train, "data.train")
    subject = tokenizers.TokenizerUnderTest(partial(unfitted_tokenizer, config), tokenizers.some_captions(source))
    yield from passed(title("tokenizer", config.tokenizer), tokenizers.CHECKS, subject)


def check_transform(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of an image transform."""
    subject = image_transforms.TransformUnderTest(partial(build_transform, config), config.data.image_size)
    yield from passed(title("transform", config.transform), image_transforms.CHECKS, subject)


def check_evaluators(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of each evaluator."""
    check_compatible(config)
    for name, node in config.evaluators.items():
        subject = evaluators.EvaluatorUnderTest(config, name, ranks)
        key = f"evaluators.{name}"
        for line in passed(title(key, node), evaluators.CHECKS, subject):
            yield f"{line} ({name})"


def check_optim(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of an optimizer."""
    subject = optimizers.OptimizerUnderTest(partial(build_optim, config), config)
    yield from passed(title("optim", config.optim), optimizers.CHECKS, subject)


def check_schedule(config: Config, ranks: Ranks) -> Iterator[str]:
    """The rules of a schedule of the learning rate."""
    yield from passed(title("schedule", config.schedule), optimizers.SCHEDULE_CHECKS, build_schedule(config))


SLOTS: Mapping[str, Callable[[Config, Ranks], Iterator[str]]] = {
    "encoder": check_encoder,
    "bridge": check_bridge,
    "text_encoder": check_text_encoder,
    "decoder": check_decoder,
    "objective": check_objective,
    "data": check_data,
    "tokenizer": check_tokenizer,
    "transform": check_transform,
    "evaluators": check_evaluators,
    "optim": check_optim,
    "schedule": check_schedule,
}
"""The slots whose parts are checked, in the order of the data's way through the model."""


def check_slot(slot: str, config: Config, ranks: Ranks) -> Iterator[str]:
    """Goes through all rules for the parts of a slot; yields ``ok  <rule>`` for each that is kept.

    Raises UserError, in one line, for the first rule that is broken, and for parts that do not fit together.
    """
    if slot in EMPTY_SLOTS and getattr(config, slot) is None:
        yield "--  the slot is empty: there is nothing to check"
        return
    yield from SLOTS[slot](config, ranks)
