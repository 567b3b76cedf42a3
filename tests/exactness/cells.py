"""The batch, the model and the objectives of the exactness tests, the same on every rank. See ``test_exactness.py``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from mmlm.check import batch
from mmlm.check.batch import TOKENS, VOCABULARY
from mmlm.check.exactness import moving_average
from mmlm.check.modules import stir
from mmlm.core.batch import Batch
from mmlm.core.views import StepKey
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.distillation import AffinityDistillation, CaptionDistillation, EmbeddingDistillation
from mmlm.objectives.hardest_hinge import HardestHinge
from mmlm.objectives.language_modelling import LanguageModelling
from mmlm.objectives.masked import MaskedLanguageModelling
from mmlm.objectives.masked_prediction import MaskedPrediction
from mmlm.objectives.matching import Matching
from mmlm.objectives.objective import Objective
from mmlm.objectives.parallel_captioning import ParallelCaptioning
from mmlm.objectives.prefix import PrefixLanguageModelling
from mmlm.objectives.reconstruction import MaskedReconstruction
from mmlm.objectives.self_distillation import SelfDistillation
from mmlm.objectives.sigmoid import Sigmoid
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.objectives.weights import Ramp
from mmlm.training.teacher import Teacher
from mmlm.training.train_step import TrainStep

PIXELS, WIDTH = 16, 16
STEP_KEY = StepKey(seed=3, step=5)


@dataclass(frozen=True)
class Sum:
    """One sum of objectives: new parts for each process, and their weights."""

    parts: Mapping[str, Callable[[], Objective]]
    weights: Mapping[str, float | Ramp]


def small_self_distillation() -> SelfDistillation:
    """With temperatures that leave every prototype a share."""
    return SelfDistillation(
        num_prototypes=5, hidden_width=6, bottleneck_width=4, teacher_temperature=0.5, student_temperature=0.8
    )


SUMS: Mapping[str, Sum] = {
    "contrastive": Sum({"contrastive": lambda: InfoNCE(0.3, label_smoothing=0.1)}, {"contrastive": 1.0}),
    "captioning": Sum({"captioning": lambda: Captioning(0.05, chunk_rows=7)}, {"captioning": 1.0}),
    "coca": Sum(
        {"contrastive": lambda: InfoNCE(0.3), "captioning": Captioning}, {"contrastive": 0.7, "captioning": 2.0}
    ),
    "own positives": Sum({"contrastive": lambda: InfoNCE(0.3, positives="own")}, {"contrastive": 1.0}),
    "hardest hinge": Sum({"hardest_hinge": lambda: HardestHinge(0.5)}, {"hardest_hinge": 1.0}),
    "sigmoid": Sum({"sigmoid": lambda: Sigmoid(0.3, bias=-1.0)}, {"sigmoid": 1.0}),
    "sigmoid + captioning": Sum(
        {"sigmoid": lambda: Sigmoid(0.3, bias=-1.0, positives="text"), "captioning": Captioning},
        {"sigmoid": 0.7, "captioning": 2.0},
    ),
    "reconstruction": Sum({"reconstruction": lambda: MaskedReconstruction(0.5, 12, 1, 2)}, {"reconstruction": 1.0}),
    "coca with reconstruction": Sum(
        {
            "contrastive": lambda: InfoNCE(0.3),
            "captioning": Captioning,
            "reconstruction": lambda: MaskedReconstruction(0.75, 8, 2, 2, normalise=False),
        },
        {"contrastive": 0.7, "captioning": 2.0, "reconstruction": 3.0},
    ),
    "one that has not begun": Sum(
        {"contrastive": lambda: InfoNCE(0.3), "captioning": Captioning},
        {"contrastive": 1.0, "captioning": Ramp(first=9, last=9)},
    ),
    "cappa": Sum({"cappa": lambda: ParallelCaptioning(0.6, label_smoothing=0.05)}, {"cappa": 1.0}),
    "prefix LM": Sum({"prefix_lm": PrefixLanguageModelling}, {"prefix_lm": 1.0}),
    "masked LM": Sum({"masked_lm": MaskedLanguageModelling}, {"masked_lm": 1.0}),
    "text-only LM": Sum(
        {"captioning": lambda: Captioning(captions="with_image"), "text_lm": LanguageModelling},
        {"captioning": 1.0, "text_lm": 0.5},
    ),
    "every generative one": Sum(
        {
            "contrastive": lambda: InfoNCE(0.3),
            "cappa": lambda: ParallelCaptioning(captions="with_image"),
            "prefix_lm": lambda: PrefixLanguageModelling("with_image"),
            "masked_lm": lambda: MaskedLanguageModelling(captions="with_image"),
            "text_lm": LanguageModelling,
        },
        {"contrastive": 1.0, "cappa": 2.0, "prefix_lm": 0.5, "masked_lm": 0.7, "text_lm": Ramp(2, 9)},
    ),
    "matching": Sum({"contrastive": lambda: InfoNCE(0.3), "matching": Matching}, {"contrastive": 0.7, "matching": 2.0}),
    "matching alone, hardest": Sum({"matching": lambda: Matching("hardest", None)}, {"matching": 1.0}),
    "coca with matching": Sum(
        {"contrastive": lambda: InfoNCE(0.3), "captioning": Captioning, "matching": lambda: Matching(temperature=0.3)},
        {"contrastive": 0.7, "captioning": 2.0, "matching": 1.5},
    ),
    "embedding distillation": Sum({"embedding": EmbeddingDistillation}, {"embedding": 1.0}),
    "affinity distillation": Sum({"affinity": lambda: AffinityDistillation(0.2, chunk_size=3)}, {"affinity": 1.0}),
    "caption distillation": Sum({"caption": lambda: CaptionDistillation(1.5, chunk_size=7)}, {"caption": 1.0}),
    "self distillation": Sum({"self": small_self_distillation}, {"self": 1.0}),
    "masked prediction": Sum({"masked": lambda: MaskedPrediction(0.5, 12, 1, 2)}, {"masked": 1.0}),
    "coca with distillation": Sum(
        {
            "contrastive": lambda: InfoNCE(0.3),
            "captioning": Captioning,
            "embedding": EmbeddingDistillation,
            "affinity": AffinityDistillation,
            "caption": CaptionDistillation,
            "self": small_self_distillation,
        },
        {"contrastive": 0.7, "captioning": 2.0, "embedding": 0.3, "affinity": 0.8, "caption": 1.3, "self": 0.9},
    ),
}
"""Every objective, and sums that share views or passes."""


def whole_batch() -> Batch:
    """The kit's batch of eight images and thirteen captions, in small."""
    return batch.whole_batch(PIXELS)


SHARES: Mapping[int, batch.Shares] = {1: (8,), 2: (5, 3), 4: (3, 3, 0, 2)}
"""Images of each rank, by the number of ranks: unequal on purpose, and none where nothing could be decoded."""


def share_of(rank: int, world_size: int) -> Batch:
    """The part of ``whole_batch`` that a rank holds. The text-only captions are those of ranks 0 and the last."""
    return batch.share_of(whole_batch(), rank, SHARES[world_size])


def make_step(parts: Sum, dtype: torch.dtype = torch.float64, patch_dropout: float = 0.0) -> TrainStep:
    """A tiny model with weights that nothing else in the process decides, without dropout, and the objectives."""
    torch.manual_seed(0)
    model, taught = _model(6, patch_dropout), _model(embedding_width=7)
    objective = WeightedSum({name: make() for name, make in parts.parts.items()}, parts.weights)
    average = any(part.needs_average for part in objective.objectives.values())
    objective.connect(replace(model.sizes, teacher=model.sizes if average else taught.sizes))
    step = TrainStep(model, objective).to(dtype)
    stir(step, means="objective.")
    if average:
        step.teacher = moving_average(step)
    elif objective.needs_teacher:
        step.teacher = Teacher(taught.to(dtype))
    return step.train()


def _model(embedding_width: int, patch_dropout: float = 0.0) -> ImageTextModel:
    sizes = {"patch_size": 8, "width": WIDTH, "depth": 1, "num_heads": 2}
    encoder = TimmVit(PIXELS, **sizes, class_token=False, patch_dropout=patch_dropout)
    bridge = AttentionalPooler(encoder.width, encoder.grid, WIDTH, num_heads=2, num_queries=2)
    decoder = TransformerDecoder(VOCABULARY, bridge.memory_width, TOKENS, width=WIDTH, num_heads=2)
    return ImageTextModel(encoder, bridge, decoder, embedding_width)
