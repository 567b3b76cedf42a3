"""Builds or loads models of the library transformers, for any slot; every fault becomes a one-line UserError.

A slot takes exactly one of ``name_or_path`` (a hub id, a folder, or ``package:NAME/folder``) and ``architecture``
(transformers' ``model_type``, random weights). ``settings`` override values of the model's config. Only safetensors
files are read, and no code of a hub repository is run.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from mmlm.core.errors import ArgumentError
from mmlm.core.local_files import locate
from mmlm.core.ranges import check_library_settings
from mmlm.core.wording import closest, did_you_mean, first_line, listed

TEXT_SUPPLIED: Mapping[str, str] = dict.fromkeys(
    ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "dtype", "attn_implementation"),
    "is decided by the run; remove it",
)
"""Config values of a text model that ``settings`` may not set, and how the error message ends if it does. Ids come from
the run's tokenizer; ``dtype`` and attention are decided here."""


@contextmanager
def one_line_errors(start: str) -> Iterator[None]:
    """Turns an exception that transformers raises in the block into a UserError: ``start: its first line``."""
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
        raise ArgumentError(f"{start}: {first_line(error)}") from error


def check_source(name_or_path: str | None, architecture: str | None) -> None:
    """UserError unless exactly one of ``name_or_path`` and ``architecture`` is given."""
    if (name_or_path is None) == (architecture is None):
        raise ArgumentError(
            f"name_or_path: {name_or_path} and architecture={architecture}: set exactly one; the first loads a "
            "pretrained model, the second makes a random one"
        )


# Configs


def config_class(architecture: str, names: Collection[str], kind: str, examples: str) -> type[PreTrainedConfig]:
    """The config class of ``architecture``. UserError unless it is in ``names``, the architectures of this ``kind``.

    ``kind`` ("encoder", "causal LM") and ``examples`` are words for the message.
    """
    if architecture not in names or architecture not in CONFIG_MAPPING:
        meant = closest(architecture, names)
        hint = f"did you mean '{meant}'?" if meant else f"there are for example {examples}"
        raise ArgumentError(f"architecture: transformers has no {kind} '{architecture}'; {hint}")
    return CONFIG_MAPPING[architecture]


def new_config(
    config_kind: type[PreTrainedConfig],
    settings: Mapping[str, Any],
    supplied: Mapping[str, str],
    fixed: Mapping[str, Any],
) -> PreTrainedConfig:
    """A config for random weights, with the user's ``settings`` and our ``fixed`` values.

    Raises UserError for a setting that is ``supplied`` by the run, unknown, or of a wrong value.
    """
    check_settings(settings, config_kind(**fixed), supplied)
    with one_line_errors(f"settings: {config_kind.model_type} does not take them"):
        return config_kind(**settings, **fixed)


def saved_config(name: str) -> PreTrainedConfig:
    """The config of a pretrained model, by its ``name_or_path``. Raises UserError."""
    place = locate(name, "name_or_path")
    # A name that cannot be a hub id is a folder that is not there: transformers would complain about the hub instead.
    if not Path(place).is_dir() and (place.count("/") > 1 or place.startswith((".", "/", "~"))):
        raise ArgumentError(f"name_or_path: there is no folder '{name}'; give one, or a name on the hub")
    with one_line_errors(f"name_or_path: '{name}' cannot be loaded"):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def change_config(config: PreTrainedConfig, settings: Mapping[str, object], supplied: Mapping[str, str]) -> None:
    """Sets the user's ``settings`` in the config of a pretrained model, in place. Raises UserError."""
    check_settings(settings, config, supplied)
    for key, value in settings.items():
        with one_line_errors(f"settings.{key}: {value} does not fit"):
            setattr(config, key, value)


def check_settings(settings: Mapping[str, object], config: PreTrainedConfig, supplied: Mapping[str, str]) -> None:
    """UserError for a key that is ``supplied`` by the run, or that the config lacks (transformers accepts any key).

    Also for a number out of range, which transformers would take.
    """
    public = sorted(key for key in {*vars(config), *config.attribute_map} if not key.startswith("_"))
    for key in settings:
        if key in supplied:
            raise ArgumentError(f"settings.{key}: {supplied[key]}")
        if key not in public:
            hint = did_you_mean(key, public)
            raise ArgumentError(f"settings.{key}: {config.model_type} has no such setting{hint}")
    check_library_settings(settings, {key: getattr(config, key, None) for key in settings})
    heads, groups = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ArgumentError(f"settings.num_key_value_heads: {groups} does not divide num_attention_heads={heads}")
    head_width = settings.get("head_dim")
    if isinstance(head_width, int) and head_width % 2:
        raise ArgumentError(f"settings.head_dim: {head_width} must be even, for rotary positions")


# Models


def random_model(config: PreTrainedConfig, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Calls ``make`` to build a model of ``config``; returned in training mode. Raises UserError."""
    with one_line_errors(f"settings: {config.model_type} cannot be built with them"):
        return make().train()


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns off transformers' progress bar and its report of missing weights, which ``pretrained_model`` checks."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def pretrained_model(name: str, load: Callable[..., Any], may_lack: Sequence[str] = ()) -> PreTrainedModel:
    """Loads a checkpoint as a model in training mode, in float32 whatever dtype the file has.

    ``load`` is a class's ``from_pretrained`` with the config bound. Raises UserError for a checkpoint that cannot be
    read or lacks weights, except for weights whose names begin with one of ``may_lack``.
    """
    place = locate(name, "name_or_path")
    with _quiet(), one_line_errors(f"name_or_path: '{name}' cannot be loaded"):
        model, report = load(place, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(may_lack)))
    if missing:
        raise ArgumentError(
            f"name_or_path: '{name}' has no weights for {listed(missing, 1)} of its model; they would start at random"
        )
    return model.train()


def fit_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Appends rows to the token embedding, and to the head if there is one, until they hold ``vocab_size`` ids.

    A new row is the mean of the old rows: an average token. Random rows would make a frozen model differ between seeds.
    A larger vocabulary is left alone, since many models pad theirs.
    """
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    old = embedding.weight.shape[0]
    if vocab_size > old:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        embedding = cast(nn.Embedding, model.get_input_embeddings())  # resizing may have replaced it
        _fill_with_mean(embedding, old)
        head = model.get_output_embeddings()
        if head is not None:
            _fill_with_mean(cast(nn.Linear, head), old)
    # The row of the model's padding id gets gradients like any other: that id may be a real token of the run.
    embedding.padding_idx = None


@torch.no_grad()
def _fill_with_mean(part: nn.Embedding | nn.Linear, old: int) -> None:
    """Sets all rows of a weight behind the first ``old`` rows to the mean of those first rows."""
    part.weight[old:] = part.weight[:old].mean(dim=0)
