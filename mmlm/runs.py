"""What a run leaves in its folder: finding it, the weights it exports, and starting another run from them."""

import json
from pathlib import Path

from torch import Tensor

from mmlm.checkpoint import best_checkpoint, latest_checkpoint, load_weights
from mmlm.config import Config, InitSettings
from mmlm.errors import UserError
from mmlm.model.model import ImageTextModel
from mmlm.weights import Weights, match_weights

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"
ASIDE = ".before-"
"""In the name of a run folder that was moved aside for a new run."""
CONFIG = "config.yaml"
MODEL_TYPE = "mmlm"
"""``model_type`` in the config.json of an exported model."""


def find_run(path: str) -> Path:
    """The run folder that ``path`` is, or the only one below it. Raises UserError."""
    root = Path(path)
    if (root / CONFIG).is_file():
        return root
    # Not any config.yaml: wandb writes one of its own below the run folder.
    found = sorted(file.parent for file in root.glob(f"**/seed=*/{CONFIG}")) if root.is_dir() else []
    found = [folder for folder in found if ASIDE not in folder.name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"run: {path} holds {len(found)} runs; name one, such as {found[0]}")
    raise UserError(f"run: {path} is no run folder (it has no {CONFIG}); train one with python -m mmlm.train")


def exported_weights(folder: Path, config: Config) -> tuple[int, dict[str, Tensor]]:
    """The step and the model's weights that a run exports. Raises UserError if there is no checkpoint."""
    step, weights = trained_weights(folder, config)
    return step, model_weights(weights)


def trained_weights(folder: Path, config: Config) -> tuple[int, dict[str, Tensor]]:
    """The step and all weights, the objective's too, of a run's best checkpoint, or of its last if it keeps no best.

    Names are those in checkpoints. The moving average of the weights is taken where the run has one. Raises UserError
    if there is no checkpoint.
    """
    best = best_checkpoint(folder / CHECKPOINTS)
    checkpoint = best.folder if best else latest_checkpoint(folder / CHECKPOINTS)[0]
    if checkpoint is None:
        raise UserError(f"run: {folder} has no checkpoint yet; let it train until it saves one")
    weights = load_weights(checkpoint, "model" if config.train.ema_decay is None else "ema")
    return int(checkpoint.name.split("=")[1].split(".")[0]), weights


def model_weights(weights: Weights) -> dict[str, Tensor]:
    """The model's tensors by their names in the model: without the ``model.`` of checkpoints and exported files.

    A checkpoint holds the objective's parameters next to them, which are left out.
    """
    own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    return own or dict(weights)


def tokenizer_folder(start: InitSettings) -> Path | None:
    """Where the tokenizer stands that comes with the weights of a part that reads or writes text; None without one.

    It comes with a run, and with the weights of an exported folder; any other file of weights holds none.
    """
    if start.parts is not None and not {"decoder", "text_encoder"} & set(start.parts):
        return None
    if start.run is not None:
        return find_run(start.run) / TOKENIZER
    if start.weights is not None and is_exported(Path(start.weights).parent):
        return Path(start.weights).parent
    return None


def is_exported(folder: Path) -> bool:
    """Whether ``mmlm.pretrained`` has saved a model in ``folder``."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def initialise_from(model: ImageTextModel, start: InitSettings, source: Path, given: Weights) -> None:
    """Copies the named parts' weights out of ``given``; image positions are resized to the new grid.

    ``source`` is where they come from and heads messages; neither ``model`` nor ``given`` has adapters. Raises
    UserError that lists every name without a counterpart and every tensor of another shape, but for those that
    ``init_from.missing`` and ``init_from.unexpected`` expect.
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


_ADVICE = (
    "; leave that part out of init_from.parts, or say what you expect: init_from.missing=[PATTERN] keeps this model's "
    "own tensors, init_from.unexpected=[PATTERN] leaves theirs"
)


def _part(name: str) -> str:
    return name.split(".")[0]


def _fitted(name: str, old: Tensor, new: Tensor, model: ImageTextModel) -> Tensor:
    """Image positions, resized to the model's grid by the encoder that they belong to; other tensors as they are."""
    part, _, inner = name.partition(".")
    if part != "encoder" or old.shape == new.shape:
        return old
    resized = model.encoder.resized(inner, old)
    return old if resized is None else resized
