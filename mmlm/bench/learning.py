"""Trains one cell for a few steps, and judges whether it has learned."""

import dataclasses
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import UserError
from mmlm.core.stop import stop_request
from mmlm.core.views import CAPTION
from mmlm.data.evaluation_batches import EvaluationBatches
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
from mmlm.record.metrics import MetricLog, read_metrics
from mmlm.training.gradients import backward
from mmlm.training.loop import FitParts, Watch, fit
from mmlm.training.messages import NonFiniteLoss
from mmlm.training.reporter import Reporter
from mmlm.training.spikes import SpikeSettings
from mmlm.training.train_state import TrainState
from mmlm.training.train_step import inner

MARGIN = 0.5
"""The held-out captioning loss has to be this many nats a token below the entropy of the unigrams."""
LAST_STEPS = 50
"""Training steps at the end over which the contrastive loss is averaged."""
CONTRASTIVE_SHARE = 0.5
"""The contrastive loss has to be below this share of ln B, the loss of a model that guesses."""


@dataclass(frozen=True)
class Captioned:
    """The figures of a captioner on the held-out split, in nats a token."""

    loss: float
    """Mean loss of the reference captions."""
    entropy: float
    """Entropy of the unigrams of the training captions' tokens."""
    gap: float
    """Image-use gap."""
    gap_low: float
    """Lower end of the gap's 95% interval."""
    gap_high: float
    """Upper end of the gap's 95% interval."""

    @property
    def below(self) -> float:
        """How far the loss is below the entropy."""
        return self.entropy - self.loss


@dataclass(frozen=True)
class Learned:
    """The result of a cell."""

    captioned: Captioned | None
    """None for a cell that does not train captions."""
    contrastive: float | None
    """Contrastive training loss, mean of the last ``LAST_STEPS`` steps; None for a cell without that objective."""
    batch_size: int
    """Images a step, B."""
    seconds: float
    """Wall-clock seconds of building, training and evaluating."""
    device: str
    failure: str | None = None
    """Why training broke off."""

    @property
    def limit(self) -> float:
        """The value that the contrastive loss has to be below."""
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
    """A source of ``count`` examples of another source: drawn without replacement, always the same, in their order."""

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
    """Entropy in nats of the tokens that a captioner has to predict: all tokens of the captions but the start tokens.

    It is the loss of the best model that knows the frequency of each token and nothing else.
    """
    captions = Counter((caption.text, caption.language) for caption in source.captions())
    tokens: Counter[int] = Counter()
    for (text, language), times in captions.items():
        for token in tokenizer.encode(text, language, max_tokens)[1:]:
            tokens[token] += times
    total = tokens.total()
    return -sum(count / total * math.log(count / total) for count in tokens.values())


def train_cell(config: Config, split: str, examples: int | None) -> Learned:
    """Trains a config and evaluates it on its validation split ``split``, or on ``examples`` examples of that split.

    Nothing is left on disk; progress goes to stderr. Training that breaks off gives a ``Learned`` with a ``failure``.
    Raises UserError for a cell that cannot be built or has nothing to judge, ``Interrupted`` after Ctrl-C.
    """
    begun = time.monotonic()
    check_compatible(config)
    with tempfile.TemporaryDirectory() as folder:
        # Without splits and evaluators of its own: this function chooses which ones there are.
        plain = dataclasses.replace(config, evaluators={}, data=dataclasses.replace(config.data, validation={}))
        experiment = build_experiment(plain, Path(folder))
        objective, device = inner(experiment.state.train_step).objective, device_name(experiment.device)
        evaluation = _evaluation(config, experiment)
        held_out = {"held_out": _held_out(config, experiment, split, examples)} if evaluation.evaluators else {}
        contrastive = "contrastive" in objective.objectives
        if not held_out and not contrastive:
            raise UserError("objective: it trains neither captions nor contrastively, so there is nothing to judge")
        try:
            rows = _fit(config, experiment, evaluation, held_out, Path(folder))
        except NonFiniteLoss as error:
            return Learned(None, None, config.train.batch_size, time.monotonic() - begun, device, str(error))
    # The last row is that of the evaluation.
    last = [row["train/contrastive"] for row in rows[:-1][-LAST_STEPS:]] if contrastive else []
    return Learned(
        captioned=_captioned(config, experiment, rows[-1]) if held_out else None,
        contrastive=sum(last) / len(last) if contrastive else None,
        batch_size=config.train.batch_size,
        seconds=time.monotonic() - begun,
        device=device,
    )


def _evaluation(config: Config, experiment: Experiment) -> Evaluation:
    """The evaluation on the held-out split; without evaluators for a cell that does not train captions."""
    captions = CAPTION in inner(experiment.state.train_step).objective.views
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
    with MetricLog(folder) as log, stop_request() as request:
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
