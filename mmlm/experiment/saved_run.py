"""A run that has trained already: its weights and its tokenizer, and how another run starts or learns from it."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.checkpoints.checkpoint import best_checkpoint, latest_checkpoint, load_weights
from mmlm.checkpoints.files import folders, step_of
from mmlm.checkpoints.weights import Weights, copy_weights, match_weights, read_weights
from mmlm.core.errors import UserError
from mmlm.core.views import EMBED, TextView, View
from mmlm.core.wording import listed
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer, same_tokens
from mmlm.experiment.build import build_freeze, build_model, unfitted_tokenizer
from mmlm.experiment.config import Config, InitSettings
from mmlm.experiment.config_file import load_config
from mmlm.experiment.parts import dotted
from mmlm.experiment.similarity_scale import Scale, learned_scale
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.objectives.objective import Objective
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.lora import merge_adapters
from mmlm.record.folder import CHECKPOINTS, CONFIG, TOKENIZER, find_run
from mmlm.record.manifest import announce, check_files

CARD = "README.md"
"""The model card of an exported model, which people edit at the hub: it is not compared with the manifest."""
MODEL_TYPE = "mmlm"
"""``model_type`` in the config.json of an exported model."""


def exported_weights(folder: Path, config: Config) -> tuple[int, dict[str, Tensor]]:
    """The step, and the weights of the model that a run exports. Raises UserError if there is no checkpoint."""
    step, weights = trained_weights(folder, config)
    return step, model_weights(weights)


def trained_weights(folder: Path, config: Config, checkpoint: Path | None = None) -> tuple[int, dict[str, Tensor]]:
    """The step and all weights, the objective's too, of a run's best checkpoint, or of its last if it has no best one;
    of ``checkpoint``, a folder, if one is given.

    Names are those in checkpoints. If the run keeps a moving average of the weights, the average is returned. Raises
    UserError if there is no checkpoint.
    """
    if checkpoint is None:
        best = best_checkpoint(folder / CHECKPOINTS)
        checkpoint = best.folder if best else latest_checkpoint(folder / CHECKPOINTS)[0]
    if checkpoint is None:
        raise UserError(f"run: {folder} has no checkpoint yet; let it train until it saves one")
    return step_of(checkpoint), load_weights(checkpoint, scored_group(config))


def scored_group(config: Config) -> str:
    """The group of weights in a checkpoint that a run scores and exports: the moving average, if it keeps one."""
    return "model" if config.train.ema_decay is None else "ema"


def kept_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that a run still has, in the order of their steps. Raises UserError if there is none."""
    found = sorted(folders(folder / CHECKPOINTS), key=step_of)
    if not found:
        raise UserError(f"run: {folder} has no checkpoint yet; let it train until it saves one")
    return found


def model_weights(weights: Weights) -> dict[str, Tensor]:
    """The model's tensors by their names in the model: without the prefix ``model.`` of checkpoints and exported files.

    The objective's parameters, which a checkpoint holds next to them, are left out. Weights of which no name begins so
    are returned as they are.
    """
    own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    return own or dict(weights)


def tokenizer_folder(start: InitSettings) -> Path | None:
    """The folder of the tokenizer that belongs to the weights ``init_from`` takes; None if the run is to fit its own.

    A part that reads or writes text has embeddings by token id, so the decoder or text encoder brings its tokenizer. A
    run has one, and so has the folder of an exported model; any other file of weights comes without.
    """
    if start.parts is not None and not {"decoder", "text_encoder"} & set(start.parts):
        return None
    if start.run is not None:
        return find_run(start.run) / TOKENIZER
    if start.weights is not None and is_exported(Path(start.weights).parent):
        return Path(start.weights).parent
    return None


def is_exported(folder: Path) -> bool:
    """True if ``mmlm.pretrained`` has saved a model in ``folder``."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a tokenizer into a run folder that has none, whole or not at all, with its files in the manifest."""
    saving = folder / f".{TOKENIZER}.{os.getpid()}"
    rmtree(saving, ignore_errors=True)  # of a process that was killed
    saving.mkdir()
    tokenizer.save(saving)
    files = [file for file in saving.rglob("*") if file.is_file()]
    announce(folder, {f"{TOKENIZER}/{file.relative_to(saving).as_posix()}": file.read_bytes() for file in files})
    saving.rename(folder / TOKENIZER)


def restore_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Restores a tokenizer from the folder of a run's or of an exported model's, if its files are as they were written.

    Raises UserError.
    """
    if folder.name == TOKENIZER:
        check_files(folder.parent, TOKENIZER)
    else:
        check_files(folder, spared=[CARD])
    tokenizer.restore(folder)


def initialise_from(model: ImageTextModel, start: InitSettings, source: Path, given: Weights) -> None:
    """Copies the named parts' weights out of ``given``; image positions are resized to the new grid.

    ``source`` is where the weights come from, for messages. Neither ``model`` nor ``given`` has adapters. Raises a
    UserError that lists every name without a counterpart and every tensor of another shape, except for those that match
    ``init_from.missing`` or ``init_from.unexpected``.
    """
    target = model.state_dict()
    if start.parts is not None:
        known = list(dict.fromkeys(_part(name) for name in target))
        for part in start.parts:
            if part not in known:
                raise UserError(f"init_from.parts: '{part}' is no part of the model; there are: {', '.join(known)}")
        target = {name: value for name, value in target.items() if _part(name) in start.parts}
        given = {name: value for name, value in given.items() if _part(name) in start.parts}
    given = {
        name: _fitted(name, value, target[name], model) if name in target else value for name, value in given.items()
    }
    for name in match_weights(target, given, f"init_from: {source}", start.missing, start.unexpected, _ADVICE):
        target[name].copy_(given[name])


@torch.no_grad()
def start_objective(config: Config, objective: WeightedSum) -> list[str]:
    """Goes on from what the objective of ``init_from.run`` has learned: temperatures, biases, heads.

    Taken over is what belongs to a term with the same settings in both configs; a setting that the user changed counts
    as it is. Returns a line about each term that begins from its settings instead. With ``init_from.parts``, whose
    parts are those of the model, nothing is taken and nothing said. Raises UserError.
    """
    start = config.init_from
    if start.parts is not None:
        return []
    learned: Weights = {}
    terms: Mapping[str, object] = {}
    if start.run is not None:
        folder = find_run(start.run)
        theirs = load_config(folder / CONFIG, config.plugins)
        learned, terms = trained_weights(folder, theirs)[1], theirs.objective.get("objectives", {})
    lines, nodes = [], config.objective.get("objectives", {})  # a sum of one's own may name its terms elsewhere
    for term, part in objective.named_parts().items():
        node = nodes.get(term, {})
        own = dict(cast(nn.Module, part).named_parameters())
        given = {name: learned.get(f"objective.objectives.{term}.{name}") for name in own}
        fits = all(value is not None and value.shape == own[name].shape for name, value in given.items())
        if own and fits and terms.get(term) == node:
            for name, value in given.items():
                own[name].copy_(cast(Tensor, value))
        elif own:
            said = ", ".join(f"{key}={node[key]}" for key in ("temperature", "bias") if key in node)
            why = (
                f"has learned it with other settings ({_settings(terms[term])})" if term in terms else "has none of it"
            )
            lines.append(
                f"objective.objectives.{term}: starts from its settings{f' ({said})' if said else ''}: "
                f"{start.run or start.weights} {why}"
            )
    return lines


def _settings(node: object) -> str:
    return ", ".join(f"{key}={value}" for key, value in cast(dict[str, object], node).items() if key != "_target_")


def differing_sizes(config: Config) -> str:
    """``; it has model.width=144, ...``: what of the run's model is another here. Empty for a file of weights."""
    if config.init_from.run is None:
        return ""
    theirs = load_config(find_run(config.init_from.run) / CONFIG, config.plugins)
    own, other = (dict(dotted(_sizes(one))) for one in (config, theirs))
    odd = [f"{key}={value}" for key, value in other.items() if own.get(key) != value and not key.endswith("_target_")]
    if not odd:
        return ""
    return f"; the run has {listed(odd, _SHOWN)}: give these, or leave out experiment=, and the run brings them"


def _sizes(config: Config) -> dict[str, object]:
    sizes: dict[str, object] = {slot: getattr(config, slot) or {} for slot in MODEL_SLOTS}
    data = {"image_size": config.data.image_size, "max_tokens": config.data.max_tokens}
    return sizes | {"model": vars(config.model), "data": data}


_SHOWN = 4
"""Settings that a message lists."""
_ADVICE = (
    "; leave that part out of init_from.parts, or say what you expect: init_from.missing=[PATTERN] keeps this model's "
    "own tensors, init_from.unexpected=[PATTERN] leaves theirs"
)


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to: ``encoder`` of ``encoder.vit.pos_embed``."""
    return name.split(".")[0]


def _fitted(name: str, old: Tensor, new: Tensor, model: ImageTextModel) -> Tensor:
    """A position table of the encoder resized to the grid of this model's encoder; any other tensor as it is."""
    part, _, inner = name.partition(".")
    if part != "encoder" or old.shape == new.shape:
        return old
    resized = model.encoder.resized(inner, old)
    return old if resized is None else resized


def load_teacher(
    config: Config, objective: WeightedSum, tokenizer: Tokenizer, source: Source, device: torch.device
) -> ImageTextModel | None:
    """The model of ``teacher.run``; None if that is not set. Raises UserError for a teacher with other token ids."""
    if config.teacher.run is None:
        return None
    run = load_run(config.teacher.run, device, config.plugins)
    views: set[View] = set()
    for part in objective.objectives.values():
        views |= cast(Objective, part).teacher_views
    # A teacher that only sees images may have any tokenizer.
    reads = any(view == EMBED or isinstance(view, TextView) for view in views)
    if reads and not same_tokens(tokenizer, run.tokenizer, source.captions()):
        raise UserError(
            f"teacher.run: the tokenizer of {run.folder} makes other ids than this run's; use the same tokenizer, "
            "fitted on the same captions, for both"
        )
    return run.model


@dataclass(frozen=True)
class TrainedRun:
    """A run that has finished or stopped, loaded for use."""

    folder: Path
    config: Config
    step: int
    """Optimizer steps that the weights have been trained for."""
    model: ImageTextModel
    """In eval mode, with the weights that the run exports."""
    tokenizer: Tokenizer
    scale: Scale | None = None
    """What the run has learned to multiply similarities by."""


def load_run(
    path: str, device: torch.device, plugins: Collection[str] = (), checkpoint: Path | None = None
) -> TrainedRun:
    """Loads the run at ``path``, or the only run below it, with the weights it exports, or those of ``checkpoint``.

    ``plugins`` are the packages, besides mmlm, that its config may name parts of. Raises UserError.
    """
    folder = find_run(path)
    config = load_config(folder / CONFIG, plugins)
    tokenizer = unfitted_tokenizer(config)
    restore_tokenizer(tokenizer, folder / TOKENIZER)
    model = build_model(config, tokenizer.vocab_size, load_weights=False)
    build_freeze(config).add_adapters(model)
    step, weights = trained_weights(folder, config, checkpoint)
    copy_weights(model.state_dict(), model_weights(weights), f"run: {folder}")
    return TrainedRun(folder, config, step, model.to(device).eval(), tokenizer, learned_scale(config, weights))


def load_checkpoint(run: TrainedRun, checkpoint: Path) -> TrainedRun:
    """The run with the weights of another of its checkpoints, which take the place of those in its model.

    They are the moving average if the run keeps one. Raises UserError.
    """
    weights = load_weights(checkpoint, "model" if run.config.train.ema_decay is None else "ema")
    copy_weights(run.model.state_dict(), model_weights(weights), f"run: {checkpoint}")
    return replace(run, step=step_of(checkpoint), scale=learned_scale(run.config, weights))


def start_weights(start: InitSettings, plugins: Collection[str] = ()) -> tuple[Path, dict[str, Tensor]]:
    """The file or run folder that ``init_from`` names, and the model's weights in it. Raises UserError.

    Adapters of the other run are merged into the weights that they adapt: this run may have others, or none.
    ``plugins`` are the packages, besides mmlm, that the other run's config may name parts of.
    """
    if start.weights is not None:
        file = Path(start.weights)
        if is_exported(file.parent):
            check_files(file.parent, spared=[CARD])
        return file, model_weights(read_weights(file))
    folder = find_run(cast(str, start.run))
    config = load_config(folder / CONFIG, plugins)
    if build_freeze(config).lora is None:
        return folder, exported_weights(folder, config)[1]
    model = load_run(str(folder), torch.device("cpu"), plugins).model
    merge_adapters(model)
    return folder, model.state_dict()
