"""A model to use, from whichever of the two folders: that of a run, or that of an exported model."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch

import mmlm
from mmlm.experiment.saved_run import is_exported, load_run
from mmlm.pretrained.model import MmlmModel


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
