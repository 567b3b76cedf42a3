"""Two towers of another library become a run folder: its config, checkpoint and tokenizer."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from mmlm.checkpoints.checkpoint import save_checkpoint
from mmlm.checkpoints.weights import match_weights
from mmlm.cli.arguments import ConvertArguments
from mmlm.cli.hydra_config import compose
from mmlm.core.errors import UserError
from mmlm.experiment.build import build_model, unfitted_tokenizer
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.config_file import save_config
from mmlm.experiment.saved_run import save_tokenizer
from mmlm.pretrained.towers import BIAS, SCALE, Towers
from mmlm.record.folder import CHECKPOINTS, CONFIG

EXPERIMENT = "two_towers"
"""The experiment that imported towers are runs of."""
_MAX_SCALE = 100.0
"""CLIP's bound of 1 / temperature, which the softmax loss keeps to."""


@dataclass(frozen=True)
class Loss:
    """What the user says of the loss of weights that do not say it."""

    temperature: float | None
    bias: float | None

    @classmethod
    def of(cls, arguments: ConvertArguments) -> "Loss":
        """Those of a command. Raises UserError for a number out of range."""
        if arguments.temperature is not None and not 0 < arguments.temperature < math.inf:
            raise UserError(f"temperature: {arguments.temperature} must be above 0 and finite, such as 0.01")
        if arguments.bias is not None and not math.isfinite(arguments.bias):
            raise UserError(f"bias: {arguments.bias} must be finite, such as -10")
        return cls(arguments.temperature, arguments.bias)


def new_folder(path: str) -> Path:
    """The folder to write. Raises UserError if something is there already."""
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"to: {folder} is there already; give a folder that is not")
    return folder


def import_towers(towers: Towers, folder: Path, source: str, said: Loss) -> None:
    """Writes a run folder with the towers of ``source``. Raises UserError, before anything is written.

    Temperature and bias are those of the weights; what they lack has to be ``said``.
    """
    scale = towers.scale
    if scale is None or said.temperature is not None:
        scale = torch.tensor(-math.log(_said("temperature", said.temperature, scale, source, "0.01")))
    loss = {SCALE: scale if towers.sigmoid else scale.clamp(0.0, math.log(_MAX_SCALE))}
    if towers.sigmoid:
        bias = towers.bias
        if bias is None or said.bias is not None:
            bias = torch.tensor(_said("bias", said.bias, bias, source, "-10"))
        loss[BIAS] = bias
    elif said.bias is not None:
        raise UserError("bias: these towers were trained by a softmax, which has none; leave it out")
    config = _config(towers, loss)
    tokenizer = unfitted_tokenizer(config)
    with torch.device("meta"):
        ours = build_model(config, tokenizer.vocab_size, load_weights=False).state_dict()
    match_weights(ours, towers.weights, source)
    folder.mkdir(parents=True, exist_ok=True)
    term = "sigmoid" if towers.sigmoid else "contrastive"
    state = {f"model.{name}": towers.weights[name] for name in ours}
    state |= {f"objective.objectives.{term}.{name}": value for name, value in loss.items()}
    save_checkpoint(folder / CHECKPOINTS, 0, {"model": state}, {})
    save_tokenizer(tokenizer, folder)
    save_config(config, folder / CONFIG)  # last: without it the folder is no run
    told = f"temperature {math.exp(-float(scale)):.4g}" + (f", bias {float(loss[BIAS]):.4g}" if BIAS in loss else "")
    print(f"{folder}: two towers with {len(towers.weights)} tensors of {source}; {told}")
    print(f"to train on from it: python -m mmlm.train init_from.run={folder} data=PATH")


def _said(name: str, value: float | None, own: Tensor | None, source: str, example: str) -> float:
    """The number that the user gives for weights that have none. Raises UserError if it is missing, or not needed."""
    if own is not None:
        raise UserError(f"{name}: {source} has its own; leave it out")
    if value is None:
        raise UserError(
            f"{name}: {source} has none, and none is guessed; give {name}={example} or what it was trained with"
        )
    return value


def _config(towers: Towers, loss: dict[str, Tensor]) -> Config:
    """The checked config of the run. Raises UserError."""
    term = "sigmoid" if towers.sigmoid else "contrastive"
    temperature = math.exp(-float(loss[SCALE]))
    # The softmax loss refuses less than 1 / 100, and exp(-ln 100) may come out a little below it.
    temperature = temperature if towers.sigmoid else max(temperature, 1 / _MAX_SCALE)
    width = "null" if towers.embedding_width is None else towers.embedding_width
    overrides = [
        f"experiment={EXPERIMENT}",
        f"objective={term}",
        f"objective.objectives.{term}.temperature={temperature:.8g}",
        f"data.image_size={towers.image_size}",
        f"data.max_tokens={towers.max_tokens}",
        f"model.embedding_width={width}",
    ]
    if BIAS in loss:
        overrides.append(f"objective.objectives.{term}.bias={float(loss[BIAS]):.8g}")
    cfg = compose(overrides)
    for slot in ("encoder", "text_encoder", "tokenizer"):
        OmegaConf.update(cfg, slot, getattr(towers, slot), merge=False)
    return check_config(cfg)
