"""What search and classification share: the model that ``run=`` names, and the embeddings of a folder of images."""

import sys
import time
from collections.abc import Collection
from pathlib import Path

import torch

from mmlm.cli.exits import say
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import UserError
from mmlm.core.wording import printable
from mmlm.experiment.build import build_objective
from mmlm.experiment.config_file import load_config
from mmlm.experiment.saved_run import is_exported
from mmlm.pretrained.image_index import ImageIndex, index_file, update_index
from mmlm.pretrained.model import MmlmModel
from mmlm.record.console import Console
from mmlm.record.folder import CONFIG

_SHOWN = 5
"""Files that cannot be read which are named."""


def chosen_folder(run: str) -> Path:
    """The folder of the exported model or of the run that ``run=`` names. Raises UserError."""
    return Path(run) if is_exported(Path(run)) else chosen_run(run)


def image_folder(given: str) -> Path:
    """The folder that ``images=`` names. Raises UserError, before anything is loaded, if it is none."""
    folder = Path(given)
    if not folder.is_dir():
        raise UserError(f"images: {folder} is no folder; give the one that holds the images")
    return folder


def open_to_compare(folder: Path, device: torch.device, plugins: Collection[str]) -> MmlmModel:
    """The model in ``folder``; tells if it was not trained to compare images with texts. Raises UserError."""
    if not _compares(folder, plugins):
        say(f"{folder} has no objective that compares images with texts, so that similarities may mean nothing")
    return MmlmModel.from_pretrained(folder, device=device, plugins=plugins)


def _compares(folder: Path, plugins: Collection[str]) -> bool:
    """Whether the model was trained to compare images with texts, as far as its folder tells. Raises UserError.

    An exported folder does not say. Another run may have trained what this one began from, so that False is a doubt.
    """
    if is_exported(folder):
        return True
    config = load_config(folder / CONFIG, plugins)
    return bool(build_objective(config).comparisons(config.train.steps))


def indexed(model: MmlmModel, images: Path, out: Path) -> ImageIndex:
    """The embeddings of a folder's images, by way of the index in ``out``. Raises UserError."""
    digest = model.digest()
    with Console(sys.stderr).activity() as activity:
        index = update_index(
            images,
            index_file(out, digest),
            digest,
            model.encode_image,
            time.time_ns,
            activity.update,
            say,
        )
    for error in index.unreadable[:_SHOWN]:
        say(printable(f"left out: {error}"))
    if len(index.unreadable) > _SHOWN:
        say(f"and {len(index.unreadable) - _SHOWN:,} more files that cannot be read")
    if not index.names:
        raise UserError(f"images: none of the {len(index.unreadable):,} images of {images} can be read")
    say(f"{len(index.names):,} images, {index.embedded:,} of them embedded now")
    return index
