"""Causal language models of transformers: made or loaded, fitted to a vocabulary, and refused if they are no such."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmlm.errors import UserError
from mmlm.wording import closest, did_you_mean

SUPPLIED = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "dtype", "attn_implementation")
"""Config values that are not the user's to set: the run's tokenizer decides the ids, we the rest."""
LOGIT_CHANGES = {
    "final_logit_softcapping": (None,),
    "logits_soft_cap": (None,),
    "output_logit_soft_cap": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "lm_head_multiplier": (None, 1),
}
"""Config values by which some architectures change logits after (or before) the head, and what leaves them alone."""


def make_language_model(
    name_or_path: str | None,
    architecture: str | None,
    settings: Mapping[str, object],
    vocab_size: int,
    load_weights: bool,
) -> PreTrainedModel:
    """A causal LM in float32 with torch's own attention, by hub name or folder, or random by architecture.

    A random one gets ``vocab_size`` ids. ``settings`` are values of its config that differ. Only safetensors files are
    read, and no code of a hub repository is run. Without ``load_weights`` a named LM is built by its config alone.
    Raises UserError.
    """
    if (name_or_path is None) == (architecture is None):
        raise UserError(
            f"decoder: name_or_path={name_or_path} and architecture={architecture}: set exactly one; the first loads a "
            "pretrained language model, the second makes a random one"
        )
    reserved = sorted(set(SUPPLIED) & set(settings))
    if reserved:
        raise UserError(f"decoder.settings.{reserved[0]}: is decided by the run; remove it")
    if architecture is not None:
        return _random_model(_config_of(architecture, settings, vocab_size), f"decoder.architecture={architecture}")
    name = cast(str, name_or_path)
    config = _config_at(name, settings)
    return _load(name, config) if load_weights else _random_model(config, f"decoder.name_or_path={name}")


def _config_of(architecture: str, settings: Mapping[str, object], vocab_size: int) -> PreTrainedConfig:
    """The config of a random LM. Its special ids are unset: those of the tokenizer are known to the run, not to it."""
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or architecture not in CONFIG_MAPPING:
        meant = closest(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        hint = f"did you mean '{meant}'?" if meant else "there are for example gpt2, llama, opt, qwen3, smollm3"
        raise UserError(f"decoder.architecture: transformers has no causal LM '{architecture}'; {hint}")
    kind = CONFIG_MAPPING[architecture]
    known = set(vars(kind())) | set(kind.attribute_map)
    _check_settings(settings, known, architecture)
    unset = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    try:
        return kind(**settings, vocab_size=vocab_size, **unset)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"decoder.settings: {architecture} does not take them: {_first_line(error)}") from error


def _config_at(name: str, settings: Mapping[str, object]) -> PreTrainedConfig:
    """The config of a pretrained LM, with the user's changes."""
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UserError(f"decoder.name_or_path: there is no folder '{name}'; give one, or a name on the hub")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"decoder.name_or_path: '{name}' cannot be loaded: {_first_line(error)}") from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"decoder.name_or_path: '{name}' is a {config.model_type}, which is no causal language model")
    _check_settings(settings, set(vars(config)) | set(config.attribute_map), config.model_type)
    for key, value in settings.items():
        try:
            setattr(config, key, value)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise UserError(f"decoder.settings.{key}: {value} does not fit: {_first_line(error)}") from error
    return config


def _check_settings(settings: Mapping[str, object], known: set[str], architecture: str) -> None:
    """UserError for a key that the config does not have; transformers would take it and do nothing."""
    public = sorted(key for key in known if not key.startswith("_"))
    for key in settings:
        if key not in public:
            raise UserError(f"decoder.settings.{key}: {architecture} has no such setting{did_you_mean(key, public)}")


def _random_model(config: PreTrainedConfig, key: str) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False
        )
    except (ValueError, TypeError, ImportError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{key}: cannot be built: {_first_line(error)}") from error


def _load(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The LM with its weights, every one of them from the checkpoint."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"decoder.name_or_path: '{name}' cannot be loaded: {_first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"decoder.name_or_path: '{name}' has no weights for {missing[0]} and {len(missing) - 1} more of its "
            "language model; they would start at random"
        )
    return model


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# Vocabulary


def fit_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Appends rows to the token embedding and the head until they hold ``vocab_size`` ids.

    A new row is the mean of the old ones: it is like every token and like none (and takes no random numbers, so that a
    frozen LM is the same in every run). A larger vocabulary is left alone: many LMs pad theirs. The row of the LM's own
    padding id is trained like any other, since that id may be a real token of the run.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if vocab_size > old:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        with torch.no_grad():
            for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                part.weight[old:] = part.weight[:old].mean(dim=0)
    model.get_input_embeddings().padding_idx = None


# Parts of a model


def backbone(model: PreTrainedModel) -> nn.Module:
    """The LM without its head: its ``last_hidden_state`` is what the head is applied to."""
    return model.base_model


def cache_argument(model: PreTrainedModel) -> str | None:
    """What this LM (and this version of transformers) calls its key-value cache; None if it has none."""
    names = inspect.signature(backbone(model).forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def makes_attention_explicit(model: PreTrainedModel) -> bool:
    """Whether the LM takes another attention function later, and so can return its weights."""
    return bool(getattr(model, "_supports_attention_backend", False))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The LM's layers, in order. Raises UserError if they are not found."""
    count = model.config.num_hidden_layers
    for part in backbone(model).modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise UserError(f"decoder.fusion: found no list of {count} layers in {type(model).__name__}; use fusion=prefix")


# Checks


def check_language_model(model: PreTrainedModel, key: str) -> None:
    """UserError unless logits are ``hidden @ head.T``, states causal, and embedded tokens as good as their ids.

    What a config tells is checked always; the rest by running the LM on two tokens, unless it is on the meta device.
    """
    kind, head = type(model).__name__, model.get_output_embeddings()
    if backbone(model) is model or head is None or model.config.get_text_config() is not model.config:
        raise UserError(f"{key}: {kind} is no plain language model with a head; choose a text-only causal LM")
    if cache_argument(model) is None:
        raise UserError(f"{key}: {kind} has no key-value cache, which decoding needs; choose a Transformer")
    reason = "logits must be hidden @ head.T, so that losses can be fused with the head; choose another LM"
    if getattr(head, "bias", None) is not None:
        raise UserError(f"{key}: the head of {kind} has a bias; {reason}")
    for name, harmless in LOGIT_CHANGES.items():
        value = getattr(model.config, name, None)
        if value not in harmless:
            raise UserError(f"{key}: {kind} changes its logits by {name}={value}; {reason}")
    if not head.weight.is_meta:
        _check_by_running(model, key, reason)


@torch.no_grad()
def _check_by_running(model: PreTrainedModel, key: str, reason: str) -> None:
    kind, head, training = type(model).__name__, model.get_output_embeddings(), model.training
    model.eval()
    ids = torch.tensor([[0, 1]], device=head.weight.device)
    embedded = model.get_input_embeddings()(ids)
    states = backbone(model)(inputs_embeds=embedded, use_cache=False).last_hidden_state
    first = backbone(model)(inputs_embeds=embedded[:, :1], use_cache=False).last_hidden_state
    expected = states @ head.weight.T
    # Large logits, so that a soft cap shows.
    factor = 1000 / expected.abs().max().clamp(min=1e-6)
    with _scaled_input(head, factor):
        logits = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    if not _close(states[:, :1], first):
        raise UserError(f"{key}: {kind} looks at later tokens; choose a causal language model")
    if not _close(logits, factor * expected):
        raise UserError(f"{key}: {kind} changes its logits, or needs token ids besides their embeddings; {reason}")


@contextmanager
def _scaled_input(head: nn.Module, factor: Tensor) -> Iterator[None]:
    """The head, given its input times ``factor``."""
    handle = head.register_forward_pre_hook(lambda _head, args: (args[0] * factor,))
    try:
        yield
    finally:
        handle.remove()


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-3 * other.abs().max())
