"""The schema of an experiment's config.

Settings are dataclasses that stand next to the code they set, and check their own values when they are made; parts are
``_target_`` nodes (see ``parts``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from mmlm.core.errors import ArgumentError
from mmlm.core.ranges import check_above_zero
from mmlm.data.caption_choice import CaptionSettings
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.launch.rank_info import RankSettings
from mmlm.training.settings import FitSettings

CONFIG_NAME = "config"
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (folder / "config.yaml").is_file()),
    _PACKAGE / "configs",
)
"""The folder of all configs: inside of an installed package, beside ``mmlm/`` in a checkout."""


@dataclass
class DataSettings:
    """Where examples come from and what a batch of them looks like."""

    train: Any = MISSING
    """Part: the source to train on."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Parts by split name: evaluated while training and at its end."""
    test: dict[str, Any] = field(default_factory=dict)
    """Parts by split name: evaluated only when asked for (``python -m mmlm.evaluate run=DIR splits=[test]``)."""
    path: str | None = None
    """Folder of a data set whose splits have their files in it: their settings name it as ``${data.path}``."""
    image_size: int = 32
    """Pixels a side."""
    max_tokens: int = 24
    """Longest caption in tokens, start and end included; longer ones lose their tail."""
    captions_per_image: int | None = 1
    """Captions drawn for each image each epoch; null takes all."""
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    language: str | None = None
    """Language of generated captions and of the references they are scored against; null for untagged captions."""
    shuffle_window: int | None = None
    """Shards whose examples are mixed, for data in shards; null mixes all examples of an epoch."""
    workers: int = 0
    """Processes that decode and augment; 0 does it in the training process."""
    evaluation_batch_size: int = 256
    """Examples a batch when evaluating."""
    overlap_images: int | None = 1000
    """Images of the training data, and of each validation and test split, that are compared before training to tell
    what both have; null compares neither images nor captions."""
    max_bad_share: float | None = 0.01
    """Share of an epoch's examples that may be unreadable while training, 0 to 1; more end the run (one example never
    does, unless it is 0). null bears with any."""
    max_bad_in_a_row: int | None = 100
    """Examples in a row that are unreadable, which end the run; null bears with any number."""

    def __post_init__(self) -> None:
        check_above_zero(self, "image_size", "evaluation_batch_size")
        # Written as the loader writes it, which refuses these numbers too.
        for name, least, why in (
            ("max_tokens", 3, ": start, a token, end"),
            ("captions_per_image", 1, "; null takes all"),
            ("shuffle_window", 1, " shard; null mixes all examples"),
            ("workers", 0, ""),
            ("overlap_images", 1, "; null compares nothing"),
            ("max_bad_in_a_row", 1, "; null bears with any number"),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ArgumentError(f"{name}={value} must be at least {least}{why}")
        if self.max_bad_share is not None and not 0 <= self.max_bad_share <= 1:
            raise ArgumentError(f"max_bad_share: {self.max_bad_share} must lie in [0, 1]; null bears with any share")
        both = self.validation.keys() & self.test.keys()
        if both:
            raise ArgumentError(f"test.{min(both)}: a validation split has this name too; give every split its own")
        if self.path is not None and not _names(self.path, [self.train, self.validation, self.test]):
            raise ArgumentError(f"path: no split of this data reads '{self.path}'; set data.train.folder and the like")


def _names(path: str, settings: object) -> bool:
    """Whether some setting, however deep it lies, is the path or begins with it."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list):
        return any(_names(path, one) for one in settings)
    return isinstance(settings, str) and settings.startswith(path)


@dataclass
class ModelSettings:
    """Settings of the composed model that belong to none of its parts alone."""

    width: int = 192
    """Width of the bridge's memory and of the decoder's states, where these do not set one of their own."""
    embedding_width: int | None = 256
    """Width that images and texts are projected to for contrastive learning, E; null projects neither, for two towers
    that end in projections of their own (SigLIP)."""

    def __post_init__(self) -> None:
        check_above_zero(self, "width", *(["embedding_width"] if self.embedding_width is not None else []))


@dataclass
class InitSettings:
    """Start from the weights of another run (stage chaining) or of a file: new data, resolution or parts."""

    run: str | None = None
    """Run folder to take weights from; null starts from random (or the parts' pretrained) weights."""
    weights: str | None = None
    """File to take weights from instead: safetensors, or what torch.save made of a mapping of names to tensors."""
    parts: list[str] | None = None
    """Parts to take over, such as [encoder, bridge]; null takes all. With the decoder or the text encoder comes the
    tokenizer of the run or of the exported folder that the file lies in."""
    missing: list[str] = field(default_factory=list)
    """Patterns (* stands for anything) of this model's tensors that keep their own start because the weights have no
    tensor of that name, or one of another shape. Any other tensor without a counterpart is an error."""
    unexpected: list[str] = field(default_factory=list)
    """Patterns of tensors in the weights that this model has no place for. Any other unused tensor is an error."""

    def __post_init__(self) -> None:
        if self.run is not None and self.weights is not None:
            raise ArgumentError("weights: init_from.run is set too; give one of them")
        if self.run is None and self.weights is None:
            for name in ("parts", "missing", "unexpected"):
                if getattr(self, name):
                    raise ArgumentError(f"{name}: has no effect without init_from.run or weights; give one of them")
        if self.parts == []:
            raise ArgumentError("parts: names no part; null takes all, and without init_from.run none is taken")


@dataclass
class TeacherSettings:
    """The frozen model that distillation objectives learn from. It is neither trained nor saved by this run."""

    run: str | None = None
    """Run folder of the teacher, of the same image size and tokenizer. Keep it until this run is finished."""
    ema: bool = False
    """The teacher is the moving average of this run's own weights instead; needs train.ema_decay."""

    def __post_init__(self) -> None:
        if self.run is not None and self.ema:
            raise ArgumentError("ema: teacher.run is set too; give one of them")


class Resume(Enum):
    """The choices for a run whose folder holds a run already."""

    auto = "auto"
    changed = "changed"
    never = "never"


@dataclass
class Config:
    """One experiment."""

    experiment: str = MISSING
    """Name of the experiment; its file sets it."""
    name: str | None = None
    """Name of the run; null names it by the hash of its config."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation, masks and dropout."""
    runs: str = "runs"
    """Folder that holds all run folders."""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, or cuda."""
    processes: int | None = None
    """Ranks on this machine, which launcher=local starts; null is one for each accelerator."""
    launcher: Any = None
    """Part: what starts the ranks; null trains in this process, or in what torchrun or srun started."""
    ranks: RankSettings = field(default_factory=RankSettings)
    resume: Resume = Resume.auto
    """If the folder holds a run already: ``auto`` goes on with that run if its config is the same, and refuses if it is
    not; ``changed`` goes on with the new config; ``never`` moves the old run aside and starts anew."""
    preflight: bool = False
    """Print a batch of training data as the model would get it (inputs, targets, mask), try the evaluators and the
    report's samples on a batch of each validation split, and end without a run."""
    plugins: list[str] = field(default_factory=list)
    """Your own packages that parts may come from, besides mmlm."""
    encoder: Any = MISSING
    """Part: image encoder."""
    bridge: Any = MISSING
    """Part: encoder to decoder; null for two towers without a decoder."""
    text_encoder: Any = MISSING
    """Part: text tower of its own; null embeds texts by the decoder's image-free layers."""
    decoder: Any = MISSING
    """Part: text decoder; null for two towers."""
    freeze: Any = MISSING
    """Part: the plan of which parameters train, and from which step on."""
    objective: Any = MISSING
    """Part: the weighted sum of losses that is minimised."""
    tokenizer: Any = MISSING
    """Part: tokenizer, text to token ids."""
    transform: Any = MISSING
    """Part: image augmentation."""
    optim: Any = MISSING
    """Part: optimizer."""
    schedule: Any = MISSING
    """Part: learning rate over the steps."""
    parallel: Any = field(default_factory=lambda: {"_target_": "mmlm.training.parallel.DDP"})
    """Part: how several ranks share the work (DDP or FSDP2). It does not change the numbers."""
    evaluators: dict[str, Any] = field(default_factory=dict)
    """Parts by name: the evaluators that score each split."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: FitSettings = field(default_factory=FitSettings)
    init_from: InitSettings = field(default_factory=InitSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    logger: dict[str, Any] = field(default_factory=dict)
    """Parts by name: the loggers that copy metrics, samples and report; ``metrics.jsonl`` is always written."""
