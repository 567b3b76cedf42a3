"""Converts weights of open_clip and transformers to a run folder, and a run of open_clip's CoCa back."""

import dataclasses
import importlib.util
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmlm.checkpoints.checkpoint import save_checkpoint
from mmlm.checkpoints.weights import read_weights, save_weights
from mmlm.cli.arguments import ConvertArguments
from mmlm.cli.hydra_config import compose
from mmlm.cli.runs import chosen_run
from mmlm.commands.convert_towers import Loss, import_towers, new_folder
from mmlm.core.errors import UserError
from mmlm.experiment.build import build_model, unfitted_tokenizer
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_file import config_values, load_config, save_config
from mmlm.experiment.device import seed_everything
from mmlm.experiment.parts import dotted
from mmlm.experiment.saved_run import model_weights, save_tokenizer, trained_weights
from mmlm.pretrained.open_clip import SCALE, clip_from_open_clip, coca_from_open_clip, coca_to_open_clip
from mmlm.pretrained.open_clip_config import CocaSizes, open_clip_sizes, read_config
from mmlm.pretrained.open_clip_towers import is_two_towers, open_clip_towers
from mmlm.pretrained.transformers_towers import transformers_towers
from mmlm.record.folder import CHECKPOINTS, CONFIG

COCA, CLIP = "coca_vit_b_32", "clip_captioner_vit_b_32"
"""The experiments whose models are open_clip's CoCa, and open_clip's CLIP followed by a captioning decoder."""
SCALE_KEY = "objective.objectives.contrastive.logit_scale"
TEMPERATURE_KEY = "objective.objectives.contrastive.temperature"
_CLIP_SETTINGS: Mapping[str, str] = {
    "data.image_size": "image_size",
    "data.max_tokens": "max_tokens",
    "encoder.patch_size": "patch_size",
    "encoder.width": "vision_width",
    "encoder.depth": "vision_layers",
    "encoder.num_heads": "vision_heads",
    "model.width": "width",
    "model.embedding_width": "embedding_width",
    "decoder.num_heads": "heads",
    "decoder.unimodal_layers": "text_layers",
}
"""Our settings that follow from the sizes of a CLIP, each with its field of ``ClipSizes``."""
_COCA_SETTINGS: Mapping[str, str] = {
    **_CLIP_SETTINGS,
    "bridge.num_heads": "pooler_heads",
    "bridge.num_queries": "num_queries",
    "decoder.multimodal_layers": "multimodal_layers",
}
"""Our settings that follow from the sizes of a CoCa, each with its field of ``CocaSizes``."""
_TRAINING_ONLY = (
    "encoder.pretrained",
    "encoder.weights",
    "encoder.drop_path",
    "encoder.patch_dropout",
    "decoder.dropout",
    "decoder.packed",
)
"""Settings of the parts that change training only: weights fit whatever their values are."""


def convert(arguments: ConvertArguments) -> int:
    """Converts one way or the other, as the arguments say; returns the exit status. Raises UserError."""
    given = {name for name, value in vars(arguments).items() if value not in (None, [])}
    of_towers = {"tokenizer", "temperature", "bias"}
    if {"from_open_clip", "model", "to"} <= given <= {"from_open_clip", "model", "to"} | of_towers:
        import_weights(arguments)
    elif {"from_transformers", "to"} <= given <= {"from_transformers", "to"} | of_towers:
        source = str(arguments.from_transformers)
        folder = new_folder(str(arguments.to))
        import_towers(transformers_towers(source, arguments.tokenizer), folder, source, Loss.of(arguments))
    elif {"run", "to_open_clip"} <= given <= {"run", "to_open_clip", "plugins"}:
        export_coca(str(arguments.run), Path(str(arguments.to_open_clip)), arguments.plugins)
    else:
        raise UserError(
            "give from_open_clip=, model= and to=, or from_transformers= and to=, or run= and to_open_clip=; see --help"
        )
    return 0


def import_weights(arguments: ConvertArguments) -> None:
    """Writes a run folder with the open_clip weights in a file. Raises UserError."""
    file, folder = Path(str(arguments.from_open_clip)), new_folder(str(arguments.to))
    model = _model_config(str(arguments.model))
    if is_two_towers(model):
        towers = open_clip_towers(model, read_open_clip(file), arguments.tokenizer)
        import_towers(towers, folder, str(file), Loss.of(arguments))
        return
    for name in ("tokenizer", "temperature", "bias"):
        if getattr(arguments, name) is not None:
            raise UserError(f"{name}: these weights have their own; leave it out")
    experiment, settings = architecture_of(str(arguments.model))
    weights = read_open_clip(file)
    if SCALE not in weights:
        raise UserError(f"from_open_clip: {file} has no '{SCALE}', so these are not the weights of a CoCa or CLIP")
    scale = weights[SCALE].reshape(())
    # Clamped as the objective clamps it; the outer max is needed since exp(-ln 100) may come out a little below 0.01.
    temperature = max(math.exp(-min(max(scale.item(), 0.0), math.log(100))), 0.01)
    config = _composed(experiment, settings | {TEMPERATURE_KEY: f"{temperature:.8g}"})
    # The bridge of a CLIP is ours, and so is the number of its heads.
    width, heads = config.model.width, int(config.bridge["num_heads"])
    if width % heads:
        raise UserError(
            f"model: text_cfg.width={width} has to be a multiple of {heads}, the heads of the bridge to the captioning "
            f"decoder that experiment={experiment} adds (bridge.num_heads)"
        )
    own = _with_clip(config, weights) if experiment == CLIP else coca_from_open_clip(weights, _shapes(config))
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": tensor for name, tensor in own.items()} | {SCALE_KEY: scale}
    save_checkpoint(folder / CHECKPOINTS, 0, {"model": state}, {})
    save_tokenizer(unfitted_tokenizer(config), folder)
    save_config(config, folder / CONFIG)  # last: without it the folder is no run
    print(f"{folder}: experiment={experiment} with {len(weights)} tensors of {file}")
    if experiment == CLIP:
        print("its bridge and multimodal layers are random: it embeds as CLIP does, and has to be trained to caption")
    print(f"to train on from it add: init_from.run={folder} {TEMPERATURE_KEY}={temperature:.4g}")


def export_coca(run: str, file: Path, plugins: Collection[str] = ()) -> None:
    """Writes the weights of a run as open_clip's. Raises UserError if its model is none of open_clip's CoCas.

    ``plugins`` are the packages, besides mmlm, that the run's config may name parts of.
    """
    if file.exists():
        raise UserError(f"to_open_clip: {file} is there already; give a name that is not")
    folder = chosen_run(run)
    config = load_config(folder / CONFIG, plugins)
    _check_architecture(config)
    _, weights = trained_weights(folder, config)
    if SCALE_KEY not in weights:
        raise UserError(
            f"run: {folder} was trained without the contrastive objective and has no temperature to convert"
        )
    converted = coca_to_open_clip(model_weights(weights), weights[SCALE_KEY])
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_weights(converted, file)
    else:
        torch.save(converted, file)
    print(f"{file}: {len(converted)} tensors; open_clip.load_checkpoint(model, '{file}') reads them")


def read_open_clip(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of open_clip: weights alone, or a checkpoint of its training. Never unpickles.

    Raises UserError for a file that cannot be read or holds something else.
    """
    try:
        weights = read_weights(file, nested="state_dict")
    except UserError as error:
        raise UserError(f"from_open_clip: {error}") from None
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _model_config(model: str) -> Mapping[str, object]:
    """open_clip's configuration of ``model``: a name, or a JSON file. Raises UserError."""
    if model.endswith(".json"):
        return read_config(Path(model))
    if importlib.util.find_spec("open_clip") is None:
        raise UserError("model: names of open_clip need a package: pip install open_clip_torch; or give the JSON file")
    from open_clip import get_model_config, list_models

    config = get_model_config(model)
    if config is None:
        known = ", ".join(name for name in list_models() if name.startswith("coca"))
        raise UserError(f"model: open_clip has no '{model}'; its CoCas are {known}")
    return config


def architecture_of(model: str) -> tuple[str, dict[str, int]]:
    """The experiment and the settings that build open_clip's ``model``, given by name or by its JSON file."""
    sizes = open_clip_sizes(_model_config(model))
    is_coca = isinstance(sizes, CocaSizes)
    values = dataclasses.asdict(sizes)
    settings = {key: values[name] for key, name in (_COCA_SETTINGS if is_coca else _CLIP_SETTINGS).items()}
    return (COCA if is_coca else CLIP), settings


def _composed(experiment: str, settings: Mapping[str, object]) -> Config:
    """The checked config of an experiment with ``settings`` changed. Raises UserError."""
    overrides = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
    return check_config(compose([f"experiment={experiment}", *overrides]))


def _with_clip(config: Config, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the config's model, with CLIP's ``weights`` where CLIP has them and random ones elsewhere."""
    seed_everything(config.seed)
    model = build_model(config, unfitted_tokenizer(config).vocab_size, load_weights=False)
    # Not strict: CLIP has no decoder. ``clip_from_open_clip`` has checked by name that all of CLIP is taken.
    model.load_state_dict(clip_from_open_clip(weights, model.state_dict()), strict=False)
    return model.state_dict()


def _shapes(config: Config) -> dict[str, Tensor]:
    """The state dict of the config's model on the meta device: names and shapes only."""
    vocab_size = unfitted_tokenizer(config).vocab_size
    with torch.device("meta"):
        return build_model(config, vocab_size, load_weights=False).state_dict()


def _check_architecture(config: Config) -> None:
    """UserError unless the config's model is open_clip's CoCa at some size."""
    own = dict(dotted(config_values(config)))
    # Sizes may differ: they are taken over from the run, and only the other settings are compared.
    reference = _composed(COCA, {key: own.get(key) for key in _COCA_SETTINGS})
    theirs = dict(dotted(config_values(reference)))
    slots = ("encoder.", "bridge.", "text_encoder", "decoder.", "tokenizer.")
    keys = [key for key in theirs.keys() | own.keys() if key.startswith(slots) and key not in _TRAINING_ONLY]
    for key in sorted(keys):
        if own.get(key) != theirs.get(key):
            raise UserError(
                f"run: its {key} is {own.get(key)} and open_clip's CoCa needs {theirs.get(key)}; only runs of the "
                f"architecture of experiment={COCA} can be converted"
            )
    if config.model.width != config.model.embedding_width:
        raise UserError("run: its model.embedding_width is not model.width, as in open_clip's CoCa")
