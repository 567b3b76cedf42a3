"""The files of a saved model: names, the two configs, what a folder from elsewhere may name, and the download."""

import copy
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import PretrainedConfig

import mmlm
from mmlm.core.errors import UserError
from mmlm.core.wording import first_line, shown
from mmlm.data.transforms import Transform
from mmlm.experiment.config import Config, DataSettings, ModelSettings
from mmlm.experiment.config_checks import PART_SLOTS
from mmlm.experiment.parts import check_part
from mmlm.experiment.saved_run import CARD, MODEL_TYPE
from mmlm.experiment.targets import HOME
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.record.folder import MANIFEST
from mmlm.record.manifest import announce_files

FORMAT = 1
"""The version of the files' layout; raised by one whenever an older reader would misread them."""
CONFIG_FILE = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
SLOTS = (*MODEL_SLOTS, "tokenizer", "transform")
"""The slots whose parts are saved: all that is needed to use a model."""
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", CARD, *(f"{slot}/{CONFIG_FILE}" for slot in MODEL_SLOTS))
"""Patterns of the files of a saved model."""
_HERE = "./"
"""The beginning of ``name_or_path`` of a saved part: the folder of its config lies below the model's folder."""


class MmlmConfig(PretrainedConfig):
    """The config.json of a saved model.

    Args:
        parts: the ``_target_`` node of each slot (see ``mmlm.experiment.parts``), null for an empty one.
        image_size: pixels a side.
        max_tokens: longest caption in tokens, start and end included.
        embedding_width: E; null for towers that end in projections of their own.
        vocab_size: V.
        language: language of generated captions; null for untagged ones.
        similarity_scale: what similarities are multiplied by before a softmax; null if the model has learned none.
        similarity_scale_source: where it comes from, in words.
        mmlm_version: version of the package that saved the model.
        mmlm_format: ``FORMAT`` of the package that saved the model.
        kwargs: settings that transformers itself keeps in a config.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        parts: Mapping[str, Any] | None = None,
        image_size: int = 32,
        max_tokens: int = 24,
        embedding_width: int | None = 256,
        vocab_size: int = 0,
        language: str | None = None,
        similarity_scale: float | None = None,
        similarity_scale_source: str | None = None,
        mmlm_version: str = mmlm.__version__,
        mmlm_format: int = FORMAT,
        **kwargs: Any,
    ) -> None:
        self.parts = dict(parts or {})
        self.image_size, self.max_tokens = image_size, max_tokens
        self.embedding_width, self.vocab_size, self.language = embedding_width, vocab_size, language
        self.similarity_scale, self.similarity_scale_source = similarity_scale, similarity_scale_source
        self.mmlm_version, self.mmlm_format = mmlm_version, mmlm_format
        super().__init__(**kwargs)

    @classmethod
    def of_run(cls, config: Config, vocab_size: int) -> "MmlmConfig":
        """The config of a saved model from that of its run. A pretrained tokenizer is saved with the model."""
        made = cls(
            parts={slot: copy.deepcopy(getattr(config, slot)) for slot in SLOTS},
            image_size=config.data.image_size,
            max_tokens=config.data.max_tokens,
            embedding_width=config.model.embedding_width,
            vocab_size=vocab_size,
            language=config.data.language,
            architectures=["MmlmModel"],
        )
        for slot in MODEL_SLOTS:
            if (made.parts[slot] or {}).get("weights") is not None:
                made.parts[slot]["weights"] = (
                    None  # a file on the machine that trained; its weights are in the model now
                )
        portable(made, "tokenizer")
        return made


def portable(config: MmlmConfig, slot: str) -> None:
    """Points the ``name_or_path`` of a part, if it has one, to a folder below the model's folder."""
    node = config.parts[slot]
    if node is not None and node.get("name_or_path") is not None:
        node["name_or_path"] = _HERE + ("" if slot == "tokenizer" else slot)


def is_portable(config: MmlmConfig, slot: str) -> bool:
    """True if ``portable`` has pointed the part to a folder below the model's folder."""
    node = config.parts[slot]
    return node is not None and node.get("name_or_path") == _HERE + slot


def located(config: MmlmConfig, folder: Path) -> MmlmConfig:
    """A copy of ``config`` in which the folders of ``portable`` are paths below ``folder``, the model's folder."""
    found = copy.deepcopy(config)
    for slot, node in found.parts.items():
        if node is not None and node.get("name_or_path") in (_HERE, _HERE + slot):
            node["name_or_path"] = str(folder / node["name_or_path"].removeprefix(_HERE))
    return found


def as_config(config: MmlmConfig, plugins: Collection[str]) -> Config:
    """An experiment's config with everything that building the model needs, and defaults for the rest."""
    made = Config(
        plugins=list(plugins),
        model=ModelSettings(embedding_width=config.embedding_width),
        data=DataSettings(image_size=config.image_size, max_tokens=config.max_tokens, language=config.language),
    )
    for slot in SLOTS:
        setattr(made, slot, config.parts.get(slot))
    return made


def read_config(folder: Path) -> MmlmConfig:
    """The config of a saved model. Raises UserError for a folder that holds none, or one of another format."""
    content = read_json_file(folder / CONFIG_FILE)
    kind, found, by = (content.get(key) for key in ("model_type", "mmlm_format", "mmlm_version"))
    if kind != MODEL_TYPE:
        raise UserError(f"{folder}: holds a model of type '{kind}', not '{MODEL_TYPE}'; give one that mmlm saved")
    if found != FORMAT:
        raise UserError(
            f"{folder}: was saved by mmlm {by} in format {found}; mmlm {mmlm.__version__} reads format {FORMAT}: "
            "install the version that saved it, or export the run again"
        )
    config = MmlmConfig.from_dict(content)
    missing = [slot for slot in SLOTS if slot not in config.parts]
    if missing:
        raise UserError(f"{folder / CONFIG_FILE}: parts.{missing[0]} is missing; restore the file from a copy")
    scale = config.similarity_scale
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if scale is not None and not (is_number and 0 < scale < math.inf):
        raise UserError(f"{folder / CONFIG_FILE}: similarity_scale: {shown(scale)} must be above 0 and finite, or null")
    return config


def read_json_file(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a saved model. Raises UserError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent}: is no saved model (it has no {file.name}); give one of mmlm.export") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore it from a copy") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object; restore it from a copy")
    return content


def check_targets(config: MmlmConfig, plugins: Collection[str]) -> None:
    """UserError if a node names anything but a part of its slot, or of a package that the user has allowed.

    Nothing is imported but what may be built: a folder from elsewhere must not run code of its choice.
    """
    for slot in SLOTS:
        node = config.parts.get(slot)
        for target in _targets(node):
            package = target.split(".")[0]
            if package != HOME and not any(target.startswith(f"{plugin}.") for plugin in plugins):
                raise UserError(
                    f"{CONFIG_FILE}: parts.{slot} is '{target}'; if you trust the package '{package}' to run code, "
                    f"allow it: from_pretrained(..., plugins=['{package}'])"
                )
        if node is None:
            continue
        try:
            check_part(node, slot, PART_SLOTS[slot], plugins)
        except UserError as error:
            raise UserError(f"{CONFIG_FILE}: parts.{error}") from None


def record_files(folder: Path) -> None:
    """Writes the manifest of a model that has been saved in ``folder``."""
    files = {file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()}
    announce_files(folder, files)


def _targets(node: object) -> Iterator[str]:
    """Yields every ``_target_`` in a node and in the nodes nested in it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def preprocessor(transform: Transform) -> dict[str, Any]:
    """The content of preprocessor_config.json: ``transform`` in the terms of transformers' image processors.

    With ``trim`` an image is first cut to the square around what is drawn on white, with that margin. Then its shorter
    side is resized to S and the centre square is cut out. Pixels stay between 0 and 255: the model normalises them.
    """
    size = transform.image_size
    return {
        "image_processor_type": "MmlmImageProcessor",
        "trim": transform.trim,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": transform.resample,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": False,
        "do_normalize": False,
    }


def check_preprocessor(folder: Path, transform: Transform) -> None:
    """UserError if preprocessor_config.json does not follow from config.json: a change of it alone would do nothing."""
    settings = read_json_file(folder / PREPROCESSOR)
    for key, value in preprocessor(transform).items():
        if settings.get(key) != value:
            raise UserError(
                f"{folder / PREPROCESSOR}: {key}={settings.get(key)} does not belong to this model, which has {value}; "
                f"change parts.transform in {CONFIG_FILE}"
            )


def download(
    name: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    """Downloads the model ``name`` from the hub, unless the cache has it; returns its folder. Raises UserError."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if is_path or Path(name).exists():
        raise UserError(f"{name}: there is no such folder; give the one that python -m mmlm.export wrote")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=[*_FILES, MANIFEST],
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(f"{name}: is no folder, and the hub does not give it ({first_line(error)})") from error
