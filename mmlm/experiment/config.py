"""The schema of an experiment's config, its checks, its file, and the identity of a run.

Settings are dataclasses that stand next to the code they set; parts are ``_target_`` nodes (see ``parts``).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.core.errors import UserError
from mmlm.evaluation.samples import SampleSettings
from mmlm.experiment.config_errors import explain
from mmlm.experiment.parts import check_part, dotted
from mmlm.launch.meeting import RankSettings
from mmlm.record.folder import write_whole
from mmlm.record.metrics import MetricsSettings
from mmlm.training.settings import FitSettings

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
CONFIG_NAME = "config"
OUTSIDE_IDENTITY = (
    "name",
    "seed",
    "runs",
    "device",
    "metrics",
    "data.workers",
    "train.log_every",
    "train.keep_last",
    "train.diagnose_every",
    "train.max_skipped_steps",
    "train.spike.max_rewinds",
    "train.activation_checkpointing",
    "train.compile",
    "parallel",
    "preflight",
    "processes",
    "launcher",
    "ranks",
    "resume",
)
"""Keys that do not change the numbers: where files go, what is logged, how many processes share the work."""
PART_SLOTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("image_size", "load_weights"),
    "bridge": ("patch_width", "grid", "num_prefix_tokens", "drops_patches", "pool"),
    "text_encoder": ("vocab_size", "max_tokens", "load_weights"),
    "decoder": ("vocab_size", "memory_width", "num_memory", "max_tokens", "load_weights", "embeds_text"),
    "freeze": (),
    "objective": (),
    "tokenizer": (),
    "transform": ("image_size",),
    "optim": (),
    "schedule": (),
    "launcher": ("processes",),
    "parallel": (),
}
"""Each slot and the arguments that ``build`` supplies to its part, if its constructor asks for them."""
EMPTY_SLOTS = ("bridge", "text_encoder", "decoder", "launcher")
"""Slots that may be null, which means that the run has no such part."""
EVALUATOR_ARGUMENTS = ("language",)
"""The arguments that ``build`` supplies to an evaluator whose constructor asks for them."""


@dataclass
class DataSettings:
    """Where examples come from and what a batch of them looks like."""

    train: Any = MISSING
    """Part: the source to train on."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Parts by split name: evaluated while training and at its end."""
    test: dict[str, Any] = field(default_factory=dict)
    """Parts by split name: evaluated only when asked for (``python -m mmlm.evaluate run=DIR splits=[test]``)."""
    image_size: int = 32
    """Pixels a side."""
    max_tokens: int = 24
    """Longest caption in tokens, start and end included; longer ones lose their tail."""
    captions_per_image: int | None = 1
    """Captions drawn for each image each epoch; null takes all."""
    language: str | None = None
    """Language of generated captions and of the references they are scored against; null for untagged captions."""
    workers: int = 0
    """Processes that decode and augment; 0 does it in the training process."""
    evaluation_batch_size: int = 256
    """Examples a batch when evaluating."""


@dataclass
class ModelSettings:
    """Settings of the composed model that belong to none of its parts alone."""

    width: int = 192
    """Width of the bridge's memory and of the decoder's states, where these do not set one of their own."""
    embedding_width: int = 256
    """Width that images and texts are projected to for contrastive learning, E."""


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


@dataclass
class TeacherSettings:
    """The frozen model that distillation objectives learn from. It is neither trained nor saved by this run."""

    run: str | None = None
    """Run folder of the teacher, of the same image size and tokenizer. Keep it until this run is finished."""
    ema: bool = False
    """The teacher is the moving average of this run's own weights instead; needs train.ema_decay."""


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
    """Print a batch of training data as the model would get it (inputs, targets, mask), and end without a run."""
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
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


def check_config(cfg: DictConfig) -> Config:
    """The composed config as its dataclass, once every part fits its constructor and every number is in its range.

    Builds nothing; nodes of parts stay plain mappings. Raises UserError in one line for the first fault.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config), "a config is composed on the schema, so OmegaConf makes a Config of it"
    for slot, runtime in PART_SLOTS.items():
        if getattr(config, slot) is not None or slot not in EMPTY_SLOTS:
            check_part(getattr(config, slot), slot, runtime, config.plugins)
    check_part(config.data.train, "data.train", (), config.plugins)
    for group in ("validation", "test"):
        for name, node in getattr(config.data, group).items():
            check_part(node, f"data.{group}.{name}", (), config.plugins)
    for name, node in config.evaluators.items():
        check_part(node, f"evaluators.{name}", EVALUATOR_ARGUMENTS, config.plugins)
    _check_numbers(config)
    _check_init_from(config.init_from)
    _check_teacher(config)
    return config


def _check_numbers(config: Config) -> None:
    """UserError for a setting that is out of range, or has no effect beside the others."""
    positive = {
        "train.steps": config.train.steps,
        "train.batch_size": config.train.batch_size,
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.log_every": config.train.log_every,
        "train.diagnose_every": config.train.diagnose_every,
        "train.eval_every": config.train.eval_every,
        "train.save_every": config.train.save_every,
        "train.keep_last": config.train.keep_last,
        "train.clip_norm": config.train.clip_norm,
        "ranks.timeout_seconds": config.ranks.timeout_seconds,
        "ranks.watchdog_seconds": config.ranks.watchdog_seconds,
        "train.spike.threshold": config.train.spike.threshold,
        "data.image_size": config.data.image_size,
        "data.evaluation_batch_size": config.data.evaluation_batch_size,
        "model.width": config.model.width,
        "model.embedding_width": config.model.embedding_width,
    }
    for key, value in positive.items():
        if value is not None and not value > 0:
            raise UserError(f"{key}: {value} must be above 0")
    if config.ranks.watchdog_seconds >= config.ranks.timeout_seconds:
        raise UserError(
            f"ranks.watchdog_seconds: {config.ranks.watchdog_seconds:g} must be below ranks.timeout_seconds, "
            f"{config.ranks.timeout_seconds:g}, or the ranks give up before it reports"
        )
    if config.processes is not None and config.launcher is None:
        raise UserError(f"processes: {config.processes} has no effect without a launcher; add launcher=local")
    at_least = {
        "train.max_skipped_steps": (config.train.max_skipped_steps, 0),
        "train.spike.max_rewinds": (config.train.spike.max_rewinds, 0),
        "train.spike.window": (config.train.spike.window, 2),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            raise UserError(f"{key}: {value} must be at least {least}")
    if config.train.spike.threshold is not None and config.train.save_every is None:
        raise UserError("train.spike.threshold: there is no checkpoint to go back to; set train.save_every")
    if config.name is not None and config.name != Path(config.name).name:
        raise UserError(f"name: '{config.name}' must be the name of one folder, without a slash")
    both = config.data.validation.keys() & config.data.test.keys()
    if both:
        raise UserError(f"data.test.{min(both)}: a validation split has this name too; give every split its own")


def _check_init_from(settings: InitSettings) -> None:
    """UserError for settings of ``init_from`` that contradict one another or would do nothing."""
    if settings.run is not None and settings.weights is not None:
        raise UserError("init_from.weights: init_from.run is set too; give one of them")
    if settings.run is None and settings.weights is None:
        for key in ("parts", "missing", "unexpected"):
            if getattr(settings, key):
                raise UserError(f"init_from.{key}: has no effect without init_from.run or weights; give one of them")
    if settings.parts == []:
        raise UserError("init_from.parts: names no part; null takes all, and without init_from.run none is taken")


def _check_teacher(config: Config) -> None:
    """UserError for two teachers, and for a moving average as teacher that the run does not keep."""
    if config.teacher.run is not None and config.teacher.ema:
        raise UserError("teacher.ema: teacher.run is set too; give one of them")
    if config.teacher.ema and config.train.ema_decay is None:
        raise UserError("teacher.ema: there is no moving average to be the teacher; set train.ema_decay, such as 0.999")


def config_values(config: Config) -> dict[str, Any]:
    """The config as plain values that YAML and JSON can hold."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return cast(dict[str, Any], values)


def identity(config: Config) -> str:
    """Eight hexadecimal digits that are equal for configs of the same computation (whatever their seed).

    A part counts by the package and the name of its class, not by the module in between: a class that moves to another
    file keeps the folders of its runs.
    """
    values = _without_modules(config_values(config))
    for key in OUTSIDE_IDENTITY:
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        del node[last]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _without_modules(values: Any) -> Any:
    """A copy of ``values`` in which every ``_target_: package.module.Name`` reads ``package.Name``."""
    if isinstance(values, Mapping):
        return {
            key: re.sub(r"\..*\.", ".", value) if key == "_target_" else _without_modules(value)
            for key, value in values.items()
        }
    return [_without_modules(value) for value in values] if isinstance(values, list) else values


def run_folder(config: Config) -> Path:
    """``runs/<experiment>/<name or hash>/seed=<n>``: the same config finds the same folder."""
    return Path(config.runs) / config.experiment / (config.name or identity(config)) / f"seed={config.seed}"


def load_config(file: Path) -> Config:
    """The config of a run, read from the file that ``save_config`` wrote and checked again. Raises UserError."""
    try:
        return check_config(_on_schema(OmegaConf.load(file)))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; give a run's folder, such as runs/NAME/HASH/seed=0") from None
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{file}: {explain(error)}") from error


def parse_config(text: str, where: str) -> Config:
    """The checked config in ``text`` (YAML, as of ``config_text``). ``where`` heads messages. Raises UserError."""
    try:
        return check_config(_on_schema(OmegaConf.create(text)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{where}: {explain(error)}") from error


def _on_schema(values: DictConfig | ListConfig) -> DictConfig:
    """``values`` merged into the schema, which refuses unknown keys and values of a wrong type."""
    return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), values))


def config_text(config: Config) -> str:
    """The config as YAML, which ``parse_config`` and ``load_config`` read."""
    return OmegaConf.to_yaml(OmegaConf.create(config_values(config)))


def save_config(config: Config, file: Path) -> None:
    """Writes the config as YAML, in one step: the file is the old one or the new one."""
    write_whole(file, config_text(config))


def differences(old: Config, new: Config) -> list[str]:
    """``key: old value -> new value`` for every setting that differs and changes what is computed."""
    before, after = (dict(dotted(dataclasses.asdict(config))) for config in (old, new))
    # An entry of OUTSIDE_IDENTITY stands for a setting or for a whole group of settings.
    outside = tuple(f"{key}." for key in OUTSIDE_IDENTITY)
    keys = sorted(key for key in before.keys() | after.keys() if not f"{key}.".startswith(outside))
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
