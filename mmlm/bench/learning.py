"""One cell, trained for a few steps, and what it has to show for them."""

import dataclasses
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlm.core.errors import UserError
from mmlm.core.flow import CAPTION, Caption, Example
from mmlm.core.stop import stop_request
from mmlm.data.loader import EvaluationBatches
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.evaluate import Evaluation
from mmlm.evaluation.evaluators import CaptionLoss, Evaluator, ImageUse
from mmlm.experiment.build import build_source, build_transform
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import Config
from mmlm.experiment.experiment import Experiment, build_experiment
from mmlm.record.console import Console
from mmlm.record.environment import device_name
from mmlm.record.metrics import MetricLog, MetricsSettings, read_metrics
from mmlm.training.gradients import backward
from mmlm.training.loop import FitParts, Watch, fit
from mmlm.training.messages import NonFiniteLoss
from mmlm.training.reporter import Reporter
from mmlm.training.spikes import SpikeSettings
from mmlm.training.train_state import TrainState

MARGIN = 0.5
"""Nats a token that the held-out captioning loss has to be below the unigrams' entropy."""
LAST_STEPS = 50
"""Training steps at the end over which the contrastive loss is averaged."""
CONTRASTIVE_SHARE = 0.5
"""Share of ln B, the loss of a model that knows nothing, that the contrastive loss has to be below."""


@dataclass(frozen=True)
class Captioned:
    """What a captioner made of the held-out split; nats a token."""

    loss: float
    entropy: float
    """Of the unigrams of the training captions' tokens."""
    gap: float
    """Image-use gap."""
    gap_low: float
    """Lower end of its 95% interval."""
    gap_high: float

    @property
    def below(self) -> float:
        """How far the loss is below the entropy."""
        return self.entropy - self.loss


@dataclass(frozen=True)
class Learned:
    """What a cell has to show."""

    captioned: Captioned | None
    """None for a cell that does not train captions."""
    contrastive: float | None
    """Training loss, mean of the last steps; None for a cell that is not trained contrastively."""
    batch_size: int
    """Images a step, B."""
    seconds: float
    """Wall-clock seconds of building, training and evaluating."""
    device: str
    failure: str | None = None
    """Why training broke off."""

    @property
    def limit(self) -> float:
        """What the contrastive loss has to be below."""
        return CONTRASTIVE_SHARE * math.log(self.batch_size)

    def missed(self) -> list[str]:
        """The criteria that are not met, in words; empty for a cell that learns."""
        if self.failure is not None:
            return [self.failure]
        missed = []
        if self.captioned is not None and not self.captioned.below >= MARGIN:
            missed.append("held-out loss")
        if self.captioned is not None and not self.captioned.gap_low > 0:
            missed.append("image-use gap")
        if self.contrastive is not None and not self.contrastive < self.limit:
            missed.append("contrastive loss")
        return missed


class Drawn:
    """A source of ``count`` examples of another, drawn without replacement, always the same ones, in their order."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
        self._indices = order[:count].sort().values.tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]

    def captions(self) -> Iterator[Caption]:
        """Every caption of the drawn examples."""
        for index in range(len(self)):
            yield from self[index].captions


def unigram_entropy(tokenizer: Tokenizer, source: Source, max_tokens: int) -> float:
    """Entropy of the tokens that a captioner has to predict, nats: those of all captions but their start tokens.

    It is the loss of the best model that knows how often each token comes and nothing else.
    """
    captions = Counter((caption.text, caption.language) for caption in source.captions())
    tokens: Counter[int] = Counter()
    for (text, language), times in captions.items():
        for token in tokenizer.encode(text, language, max_tokens)[1:]:
            tokens[token] += times
    total = tokens.total()
    return -sum(count / total * math.log(count / total) for count in tokens.values())


def train_cell(config: Config, split: str, examples: int | None) -> Learned:
    """Trains a config and judges it on the validation split ``split`` (it has one), or on ``examples`` of them.

    Nothing is left on disk; progress goes to stderr. Training that breaks off is a ``Learned`` with a ``failure``.
    Raises UserError for a cell that cannot be built or has nothing to judge, ``Interrupted`` after Ctrl-C.
    """
    begun = time.monotonic()
    check_compatible(config)
    with tempfile.TemporaryDirectory() as folder:
        experiment = build_experiment(_without_evaluation(config), Path(folder))
        evaluation = _evaluation(config, experiment)
        held_out = {"held_out": _held_out(config, experiment, split, examples)} if evaluation.evaluators else {}
        contrastive = "contrastive" in experiment.state.train_step.objective.objectives
        if not held_out and not contrastive:
            raise UserError("objective: it trains neither captions nor contrastively, so there is nothing to judge")
        try:
            rows = _fit(config, experiment, evaluation, held_out, Path(folder))
        except NonFiniteLoss as error:
            return Learned(
                None, None, config.train.batch_size, time.monotonic() - begun, _device(experiment), str(error)
            )
    return Learned(
        captioned=_captioned(config, experiment, rows[-1]) if held_out else None,
        contrastive=_mean([row["train/contrastive"] for row in rows[:-1]][-LAST_STEPS:]) if contrastive else None,
        batch_size=config.train.batch_size,
        seconds=time.monotonic() - begun,
        device=_device(experiment),
    )


def _without_evaluation(config: Config) -> Config:
    """The config without the splits and evaluators of its own: which ones there are is decided here."""
    return dataclasses.replace(config, evaluators={}, data=dataclasses.replace(config.data, validation={}))


def _evaluation(config: Config, experiment: Experiment) -> Evaluation:
    captions = CAPTION in experiment.state.train_step.objective.views
    evaluators: dict[str, Evaluator] = {"loss": CaptionLoss(), "image_use_gap": ImageUse()} if captions else {}
    return Evaluation.of(experiment, evaluators, config.data.max_tokens, experiment.device, config.train.precision)


def _held_out(config: Config, experiment: Experiment, split: str, examples: int | None) -> EvaluationBatches:
    source = build_source(config, config.data.validation[split], f"data.validation.{split}")
    if examples is not None and examples < len(source):
        source = Drawn(source, examples)
    data = config.data
    return EvaluationBatches(
        source, experiment.tokenizer, build_transform(config), data.evaluation_batch_size, data.max_tokens
    )


class _NothingKept:
    """The ``Checkpoints`` of a cell: nothing is kept, and with spikes off nothing is gone back to."""

    def save(self, state: TrainState, is_best: bool) -> None:
        """See ``Checkpoints``."""

    def restore(self, state: TrainState, step: int) -> None:
        """See ``Checkpoints``."""


def _fit(
    config: Config,
    experiment: Experiment,
    evaluation: Evaluation,
    held_out: Mapping[str, EvaluationBatches],
    folder: Path,
) -> list[dict[str, float]]:
    """Trains; returns the rows of metrics: one a step, then the evaluation's."""
    settings = dataclasses.replace(
        config.train,
        log_every=1,
        eval_every=None,
        save_every=None,
        best_metric=None,
        max_skipped_steps=0,
        spike=SpikeSettings(),
    )

    def evaluate(step: int) -> Mapping[str, float]:
        values = evaluation.all_scores(held_out)
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteLoss(f"step {step}: the held-out loss is not finite")
        return values

    parts = FitParts(experiment.schedule, backward, experiment.device, evaluate, _NothingKept())
    with MetricLog(folder, MetricsSettings(), {}, "") as log, stop_request() as request:
        fit(experiment.state, settings, parts, Reporter(log, Console(sys.stderr)), Watch(request))
        return read_metrics(log.path)


def _captioned(config: Config, experiment: Experiment, values: Mapping[str, float]) -> Captioned:
    return Captioned(
        loss=values["held_out/loss/captioning"],
        entropy=unigram_entropy(experiment.tokenizer, experiment.train_source, config.data.max_tokens),
        gap=values["held_out/image_use_gap/mean"],
        gap_low=values["held_out/image_use_gap/low"],
        gap_high=values["held_out/image_use_gap/high"],
    )


def _device(experiment: Experiment) -> str:
    return device_name(experiment.device)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
