"""Models of transformers for any slot: made by architecture or loaded by name, or refused in one line.

A slot takes exactly one of ``name_or_path`` (a hub id, a folder, or ``package:NAME/folder``) and ``architecture``
(transformers' ``model_type``, random weights), and ``settings``: values of the config that differ from its own. Only
safetensors files are read, and no code of a hub repository is run.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from mmlm.core.errors import UserError
from mmlm.core.local_files import locate
from mmlm.core.wording import closest, did_you_mean, first_line, listed

TEXT_SUPPLIED: Mapping[str, str] = dict.fromkeys(
    ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "dtype", "attn_implementation"),
    "is decided by the run; remove it",
)
"""Config values of a model of texts that are not the user's to set (the run's tokenizer decides the ids, we the rest),
and what to say of one that is set."""


@contextmanager
def one_line_errors(start: str) -> Iterator[None]:
    """What transformers raises about a model, as a UserError: ``start: its first line``."""
    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        AssertionError,
        RuntimeError,
        ZeroDivisionError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        raise UserError(f"{start}: {first_line(error)}") from error


def check_source(slot: str, name_or_path: str | None, architecture: str | None) -> None:
    """UserError unless exactly one of the two says what model it is."""
    if (name_or_path is None) == (architecture is None):
        raise UserError(
            f"{slot}: name_or_path={name_or_path} and architecture={architecture}: set exactly one; the first loads a "
            "pretrained model, the second makes a random one"
        )


# Configs


def config_class(
    slot: str, architecture: str, names: Collection[str], kind: str, examples: str
) -> type[PreTrainedConfig]:
    """The class of an architecture's config. UserError unless it is one of ``names``, those of this ``kind``."""
    if architecture not in names or architecture not in CONFIG_MAPPING:
        meant = closest(architecture, names)
        hint = f"did you mean '{meant}'?" if meant else f"there are for example {examples}"
        raise UserError(f"{slot}.architecture: transformers has no {kind} '{architecture}'; {hint}")
    return CONFIG_MAPPING[architecture]


def new_config(
    slot: str,
    config_kind: type[PreTrainedConfig],
    settings: Mapping[str, object],
    supplied: Mapping[str, str],
    fixed: Mapping[str, object],
) -> PreTrainedConfig:
    """A config with the user's ``settings`` and with ``fixed`` values, for random weights. Raises UserError."""
    check_settings(slot, settings, config_kind(), supplied)
    with one_line_errors(f"{slot}.settings: {config_kind.model_type} does not take them"):
        return config_kind(**settings, **fixed)


def saved_config(slot: str, name: str) -> PreTrainedConfig:
    """The config of a pretrained model, by its ``name_or_path``. Raises UserError."""
    place = locate(name, f"{slot}.name_or_path")
    if not Path(place).is_dir() and (place.count("/") > 1 or place.startswith((".", "/", "~"))):
        raise UserError(f"{slot}.name_or_path: there is no folder '{name}'; give one, or a name on the hub")
    with one_line_errors(f"{slot}.name_or_path: '{name}' cannot be loaded"):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def change_config(
    slot: str, config: PreTrainedConfig, settings: Mapping[str, object], supplied: Mapping[str, str]
) -> None:
    """Sets the user's ``settings`` in the config of a pretrained model. Raises UserError."""
    check_settings(slot, settings, config, supplied)
    for key, value in settings.items():
        with one_line_errors(f"{slot}.settings.{key}: {value} does not fit"):
            setattr(config, key, value)


def check_settings(
    slot: str, settings: Mapping[str, object], config: PreTrainedConfig, supplied: Mapping[str, str]
) -> None:
    """UserError for a ``supplied`` key, and for one that the config lacks: transformers would take it in silence."""
    public = sorted(key for key in {*vars(config), *config.attribute_map} if not key.startswith("_"))
    for key in settings:
        if key in supplied:
            raise UserError(f"{slot}.settings.{key}: {supplied[key]}")
        if key not in public:
            hint = did_you_mean(key, public)
            raise UserError(f"{slot}.settings.{key}: {config.model_type} has no such setting{hint}")


# Models


def random_model(slot: str, config: PreTrainedConfig, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """What ``make`` builds of ``config``, in training mode. Raises UserError."""
    with one_line_errors(f"{slot}: {config.model_type} cannot be built"):
        return make().train()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its table of keys: what is missing is looked at here."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def pretrained_model(slot: str, name: str, load: Callable[..., Any], may_lack: Sequence[str] = ()) -> PreTrainedModel:
    """The model of a checkpoint, in float32 whatever it is stored in, and in training mode.

    ``load`` is the ``from_pretrained`` of a class, its config bound to it. Raises UserError for a checkpoint that
    cannot be read or lacks weights, but for those whose names begin with one of ``may_lack``.
    """
    place = locate(name, f"{slot}.name_or_path")
    with _quiet(), one_line_errors(f"{slot}.name_or_path: '{name}' cannot be loaded"):
        model, report = load(place, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(may_lack)))
    if missing:
        raise UserError(
            f"{slot}.name_or_path: '{name}' has no weights for {listed(missing, 1)} of its model; they would start at "
            "random"
        )
    return model.train()


def fit_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Appends rows to the token embedding, and to the head if there is one, until they hold ``vocab_size`` ids.

    A new row is the mean of the old ones: it is like every token and like none (and takes no random numbers, so that a
    frozen model is the same in every run). A larger vocabulary is left alone: many models pad theirs. The row of the
    model's own padding id is trained like any other, since that id may be a real token of the run.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if vocab_size > old:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            if part is not None:
                _fill_with_mean(part, old)
    model.get_input_embeddings().padding_idx = None


@torch.no_grad()
def _fill_with_mean(part: nn.Module, old: int) -> None:
    """Sets all rows of a weight after the first ``old`` to the mean of those."""
    part.weight[old:] = part.weight[:old].mean(dim=0)
