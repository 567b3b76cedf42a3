"""A model to use, from whichever of the two folders: that of a run, or that of an exported model."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import mmlm
from mmlm.experiment.build import build_objective
from mmlm.experiment.config_file import load_config
from mmlm.experiment.saved_run import is_exported, load_run, trained_weights
from mmlm.pretrained.model import MmlmModel
from mmlm.record.folder import CONFIG


def open_model(folder: Path, device: torch.device, plugins: Collection[str] = ()) -> MmlmModel:
    """The model of a run folder with the weights that it exports, or that of an exported folder; in eval mode.

    ``plugins`` are the packages, besides mmlm, that the folder may name parts of. Raises UserError.
    """
    if is_exported(folder):
        return MmlmModel.from_pretrained(folder, plugins=plugins).to(device)
    return MmlmModel.from_run(load_run(str(folder), device, plugins))


def image_digest(model: MmlmModel) -> str:
    """A SHA-256 of all that decides how the model embeds an image: weights, parts, sizes, and the version of mmlm.

    A run and what was exported from it have the same.
    """
    config = model.config
    parts = {slot: config.parts[slot] for slot in ("encoder", "bridge", "transform")}
    said = {"parts": parts, "size": config.image_size, "width": config.embedding_width, "version": mmlm.__version__}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Scale:
    """What similarities are multiplied by before a softmax: 1 / temperature."""

    value: float
    source: str
    """Where it comes from, in words."""


def learned_scale(folder: Path, plugins: Collection[str] = ()) -> Scale | None:
    """The scale that a run has trained its similarities with.

    None where there is none: an exported folder, which holds the model alone, and a run without an objective that has
    a temperature and a weight. Raises UserError.
    """
    if is_exported(folder):
        return None
    config = load_config(folder / CONFIG, plugins)
    weights = config.objective.get("weights") if isinstance(config.objective, Mapping) else None
    _, trained = trained_weights(folder, config)
    for name, weight in (weights or {}).items():
        key = f"objective.objectives.{name}.logit_scale"
        if weight != 0 and key in trained:
            return Scale(trained[key].double().exp().item(), f"of the run's objective {name}")
    return None


def compares(folder: Path, plugins: Collection[str] = ()) -> bool:
    """Whether the model was trained to compare images with texts, as far as its folder tells. Raises UserError.

    An exported folder does not say. Another run may have trained what this one began from, so that False is a doubt.
    """
    if is_exported(folder):
        return True
    config = load_config(folder / CONFIG, plugins)
    return bool(build_objective(config).comparisons(config.train.steps))
