"""Config to live parts, once. Nothing below this floor sees a config; widths and sizes are supplied here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from mmlm.core.errors import UserError
from mmlm.core.flow import ModelSizes
from mmlm.core.keyed_start import keyed_start
from mmlm.data.loader import EvaluationBatches
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.evaluation.evaluators import Evaluator
from mmlm.experiment.config import Config
from mmlm.experiment.parts import build_part
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import Bridge, Decoder, Encoder, TextEncoder
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.freeze import FreezePlan
from mmlm.optim.optimizers import OptimizerPart
from mmlm.training.parallel import Parallel


def build_objective(config: Config) -> WeightedSum:
    """What is minimised; its parts of the model's widths are made by ``connect``. Raises UserError."""
    return cast(WeightedSum, build_part(config.objective, "objective", {}, config.plugins))


def build_optim(config: Config) -> OptimizerPart:
    """What makes the optimizer."""
    return cast(OptimizerPart, build_part(config.optim, "optim", {}, config.plugins))


def build_parallel(config: Config) -> Parallel:
    """How several ranks share the work."""
    return cast(Parallel, build_part(config.parallel, "parallel", {}, config.plugins))


def build_freeze(config: Config) -> FreezePlan:
    """What trains."""
    return cast(FreezePlan, build_part(config.freeze, "freeze", {}, config.plugins))


def build_source(config: Config, node: object, slot: str) -> Source:
    """A data source."""
    return cast(Source, build_part(node, slot, {}, config.plugins))


def build_transform(config: Config) -> Transform:
    """Augmentation for training; evaluation takes the same object's plain path."""
    runtime = {"image_size": config.data.image_size}
    return cast(Transform, build_part(config.transform, "transform", runtime, config.plugins))


def build_splits(
    config: Config, tokenizer: Tokenizer, nodes: Mapping[str, object], slot: str
) -> dict[str, EvaluationBatches]:
    """Evaluation batches of each split, by name."""
    transform = build_transform(config)
    return {
        name: EvaluationBatches(
            build_source(config, node, f"{slot}.{name}"),
            tokenizer,
            transform,
            config.data.evaluation_batch_size,
            config.data.max_tokens,
        )
        for name, node in nodes.items()
    }


def build_evaluators(config: Config) -> dict[str, Evaluator]:
    """The evaluators, by name."""
    runtime = {"language": config.data.language}
    return {
        name: cast(Evaluator, build_part(node, f"evaluators.{name}", runtime, config.plugins))
        for name, node in config.evaluators.items()
    }


def sizes_with_teacher(config: Config, sizes: ModelSizes, teacher: ModelSizes | None) -> ModelSizes:
    """``sizes`` with those of the teacher: of a run, or of the average of the model itself."""
    return replace(sizes, teacher=sizes if config.teacher.ema else teacher)


def build_model(config: Config, vocab_size: int, load_weights: bool = True) -> ImageTextModel:
    """Encoder, bridge, text encoder and decoder, each told the widths of those before it.

    ``load_weights`` false leaves out pretrained weights: the caller loads all of them. Raises UserError for parts that
    do not fit together.
    """

    def build(slot: str, **runtime: object) -> object:
        node = getattr(config, slot)
        return None if node is None else build_part(node, slot, runtime, config.plugins)

    encoder = cast(Encoder, build("encoder", image_size=config.data.image_size, load_weights=load_weights))
    bridge = cast(
        Bridge | None,
        build(
            "bridge",
            patch_width=encoder.width,
            grid=encoder.grid,
            num_prefix_tokens=encoder.num_prefix_tokens,
            drops_patches=encoder.drops_patches,
            pool=encoder.pooled_width is None,
        ),
    )
    text = {"vocab_size": vocab_size, "max_tokens": config.data.max_tokens, "load_weights": load_weights}
    text_encoder = cast(TextEncoder | None, build("text_encoder", **text))
    decoder = None
    if bridge is not None:
        memory = {"memory_width": bridge.memory_width, "num_memory": bridge.num_memory}
        decoder = cast(Decoder | None, build("decoder", **text, **memory, embeds_text=text_encoder is None))
    elif config.decoder is not None:
        raise UserError("bridge: the decoder needs one to see the image; choose one, such as bridge=attentional_pooler")
    with keyed_start("model"):
        return ImageTextModel(encoder, bridge, decoder, config.model.embedding_width, text_encoder)
