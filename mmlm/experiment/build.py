"""Makes the live parts that a config names. No file below this floor sees a config: it is given widths and sizes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mmlm.core.errors import UserError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.model_output import ModelSizes
from mmlm.data.class_folder import ClassFolder
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.recognise import ClassCaptions
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.evaluation.evaluators import Evaluator
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import EMPTY_SLOTS
from mmlm.experiment.contract import check_bridge, check_decoder, check_encoder, check_text_encoder
from mmlm.experiment.parts import build_part
from mmlm.launch.launcher import Launcher
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import (
    Bridge,
    BridgeInputs,
    Decoder,
    DecoderInputs,
    Encoder,
    EncoderInputs,
    TextEncoder,
    TextEncoderInputs,
)
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.freeze import FreezePlan
from mmlm.optim.optimizers import OptimizerPart
from mmlm.optim.schedules import Schedule
from mmlm.record.logger import Logger
from mmlm.training.parallel import Parallel


def _build(config: Config, slot: str, runtime: Mapping[str, object] | None = None) -> Any:
    """The part in ``config.<slot>``; None for a slot that is empty. ``runtime`` is what its constructor may ask for.

    The type is the slot's Protocol, which each of the functions below promises for the slot that it names: a config
    node cannot carry a type, so this is the one place where it is taken on trust. Raises UserError.
    """
    node = getattr(config, slot)
    if node is None and slot in EMPTY_SLOTS:
        return None
    return build_part(node, slot, runtime or {}, config.plugins)


def build_objective(config: Config) -> WeightedSum:
    """The weighted sum of losses to minimise. ``connect`` makes its parameters, once the model's widths are known."""
    return _build(config, "objective")


def build_optim(config: Config) -> OptimizerPart:
    """The factory that makes an optimizer over the parameters that train at a step."""
    return _build(config, "optim")


def build_schedule(config: Config) -> Schedule:
    """The learning rate as a function of the step."""
    return _build(config, "schedule")


def build_parallel(config: Config) -> Parallel:
    """The way in which several ranks share the work (DDP or FSDP2)."""
    return _build(config, "parallel")


def build_freeze(config: Config) -> FreezePlan:
    """The plan that says which parameters train, and from which step on."""
    return _build(config, "freeze")


def build_launcher(config: Config) -> Launcher:
    """The launcher that starts the ranks; the config names one."""
    return _build(config, "launcher", {"processes": config.processes, "plugins": config.plugins})


def unfitted_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer before it has a vocabulary: the caller fits it to captions or restores it from a folder."""
    return _build(config, "tokenizer")


def build_source(config: Config, node: object, slot: str) -> Source:
    """The data source of ``node``, which stands at the key ``slot`` of the config, such as ``data.train``."""
    return cast(Source, build_part(node, slot, {}, config.plugins))


def build_transform(config: Config) -> Transform:
    """The image transform: it augments for training, and evaluation uses the same object's plain path."""
    return _build(config, "transform", {"image_size": config.data.image_size})


def build_splits(
    config: Config, tokenizer: Tokenizer, nodes: Mapping[str, object], slot: str
) -> dict[str, EvaluationBatches]:
    """The evaluation batches of each split, by the split's name. ``slot`` is the key that ``nodes`` stand at."""
    sources = {name: build_source(config, node, f"{slot}.{name}") for name, node in nodes.items()}
    return evaluation_batches(config, tokenizer, sources)


def evaluation_batches(
    config: Config, tokenizer: Tokenizer, sources: Mapping[str, Source]
) -> dict[str, EvaluationBatches]:
    """The evaluation batches of sources, by their names: pixels and tokens as the run of the config makes them."""
    transform, data = build_transform(config), config.data
    return {
        name: EvaluationBatches(
            source, tokenizer, transform, data.evaluation_batch_size, data.max_tokens, choice=data.captions
        )
        for name, source in sources.items()
    }


def class_captions(config: Config, otherwise: str = ClassCaptions.caption) -> ClassCaptions:
    """How the images of classes are captioned: as in training, if that was on class folders, else by ``otherwise``."""
    node = config.data.train
    if not isinstance(node, Mapping) or node.get("_target_") != f"{ClassFolder.__module__}.{ClassFolder.__name__}":
        return ClassCaptions(otherwise)
    # A file of words that has stayed on another machine is no reason to refuse folders that are named in words.
    names = node.get("names")
    there = names if names is not None and Path(names).is_file() else None
    return ClassCaptions(node.get("caption", ClassCaptions.caption), there)


def build_evaluators(config: Config) -> dict[str, Evaluator]:
    """The evaluators by the name that the config gives each."""
    runtime = {"language": config.data.language}
    return {
        name: cast(Evaluator, build_part(node, f"evaluators.{name}", runtime, config.plugins))
        for name, node in config.evaluators.items()
    }


def build_loggers(config: Config) -> dict[str, Logger]:
    """The loggers by the name that the config gives each. None of them has begun. Raises UserError."""
    return {
        name: cast(Logger, build_part(node, f"logger.{name}", {}, config.plugins))
        for name, node in config.logger.items()
    }


def sizes_with_teacher(config: Config, sizes: ModelSizes, teacher: ModelSizes | None) -> ModelSizes:
    """``sizes`` of the model together with the sizes of its teacher.

    With ``teacher.ema`` the teacher is the model's own moving average and so has the model's sizes; otherwise
    ``teacher`` has those of the run ``teacher.run``, and is None without a teacher.
    """
    return replace(sizes, teacher=sizes if config.teacher.ema else teacher)


def build_model(config: Config, vocab_size: int, load_weights: bool = True, try_parts: bool = False) -> ImageTextModel:
    """The model of the config: encoder, bridge, text encoder and decoder, each told the widths of the parts before it.

    ``load_weights`` false leaves out pretrained weights: the caller loads all weights itself. ``try_parts`` runs each
    part once before the next one is built, to see that it makes what it says. Raises UserError for a part that breaks
    its protocol, and for parts that do not fit together.
    """
    # Left to right along the data's way: a part's constructor asks by name for what the parts before it have decided.
    seen = EncoderInputs(config.data.image_size, load_weights)
    encoder: Encoder = _build(config, "encoder", vars(seen))
    check_encoder(encoder, seen, try_parts)
    encoded = BridgeInputs(
        patch_width=encoder.width,
        grid=encoder.grid,
        num_prefix_tokens=encoder.num_prefix_tokens,
        drops_patches=encoder.drops_patches,
        # Exactly one of encoder and bridge pools: a second pooling would be parameters without a gradient.
        pool=encoder.pooled_width is None,
    )
    bridge: Bridge | None = _build(config, "bridge", vars(encoded))
    if bridge is not None:
        check_bridge(bridge, encoded, try_parts)
    read = TextEncoderInputs(vocab_size, config.data.max_tokens, load_weights)
    text_encoder: TextEncoder | None = _build(config, "text_encoder", vars(read))
    if text_encoder is not None:
        check_text_encoder(text_encoder, read, try_parts)
    decoder: Decoder | None = None
    if bridge is not None:
        told = DecoderInputs(
            vocab_size=vocab_size,
            memory_width=bridge.memory_width,
            num_memory=bridge.num_memory,
            max_tokens=config.data.max_tokens,
            load_weights=load_weights,
            embeds_text=text_encoder is None,
        )
        decoder = _build(config, "decoder", vars(told))
        if decoder is not None:
            check_decoder(decoder, told, try_parts)
    elif config.decoder is not None:
        raise UserError("bridge: the decoder needs one to see the image; choose one, such as bridge=attentional_pooler")
    with keyed_start("model"):
        return ImageTextModel(encoder, bridge, decoder, config.model.embedding_width, text_encoder)
