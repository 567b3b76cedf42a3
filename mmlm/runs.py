"""What a run leaves in its folder: finding it, the weights it exports, and starting another run from them."""

from pathlib import Path
from typing import cast

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mmlm.checkpoint import best_checkpoint, latest_checkpoint, load_weights
from mmlm.config import Config, load_config
from mmlm.errors import UserError
from mmlm.model.model import ImageTextModel
from mmlm.objectives.objective import TrainStep

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"
CONFIG = "config.yaml"


def find_run(path: str) -> Path:
    """The run folder that ``path`` is, or the only one below it. Raises UserError."""
    root = Path(path)
    if (root / CONFIG).is_file():
        return root
    # Not any config.yaml: wandb writes one of its own below the run folder.
    found = sorted(file.parent for file in root.glob(f"**/seed=*/{CONFIG}")) if root.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"run: {path} holds {len(found)} runs; name one, such as {found[0]}")
    raise UserError(f"run: {path} is no run folder (it has no {CONFIG}); train one with python -m mmlm.train")


def exported_weights(folder: Path, config: Config) -> tuple[int, dict[str, Tensor]]:
    """The step and the model's weights of a run's best checkpoint, or of its last where it keeps no best one.

    The moving average of the weights is taken where the run has one. Raises UserError if there is no checkpoint.
    """
    best = best_checkpoint(folder / CHECKPOINTS)
    checkpoint = best.folder if best else latest_checkpoint(folder / CHECKPOINTS)[0]
    if checkpoint is None:
        raise UserError(f"run: {folder} has no checkpoint yet; let it train until it saves one")
    weights = load_weights(checkpoint, "model" if config.train.ema_decay is None else "ema")
    step = int(checkpoint.name.split("=")[1].split(".")[0])
    return step, {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}


def initialise_from(train_step: TrainStep, config: Config) -> None:
    """Copies the named parts' weights from the run ``init_from.run``; image positions are resized to the new grid.

    Raises UserError for a part that is not there or a tensor of another shape.
    """
    folder = find_run(cast(str, config.init_from.run))
    _, source = exported_weights(folder, load_config(folder / CONFIG))
    target = train_step.model.state_dict()
    known = list(dict.fromkeys(key.split(".")[0] for key in target))
    chosen = known if config.init_from.parts is None else config.init_from.parts
    for part in chosen:
        if part not in known:
            raise UserError(f"init_from.parts: '{part}' is no part of the model; there are: {', '.join(known)}")
    for key in sorted(source.keys() - target.keys()):
        part = key.split(".")[0]
        if part in chosen:
            raise UserError(
                f"init_from: {folder} has '{key}' and this model does not; leave '{part}' out of init_from.parts"
            )
    for key, value in target.items():
        if key.split(".")[0] not in chosen:
            continue
        if key not in source:
            raise UserError(f"init_from: {folder} has no '{key}'; leave '{key.split('.')[0]}' out of init_from.parts")
        value.copy_(_fitted(key, source[key], value, train_step.model))


def _fitted(key: str, old: Tensor, new: Tensor, model: ImageTextModel) -> Tensor:
    if old.shape == new.shape:
        return old
    if key == "encoder.vit.pos_embed" and old.shape[-1] == new.shape[-1]:
        prefix = model.encoder.vit.num_prefix_tokens
        return resample_abs_pos_embed(old, list(model.encoder.grid), num_prefix_tokens=prefix)
    raise UserError(
        f"init_from: '{key}' is {list(old.shape)} in that run and {list(new.shape)} here; leave "
        f"'{key.split('.')[0]}' out of init_from.parts or build it alike"
    )
