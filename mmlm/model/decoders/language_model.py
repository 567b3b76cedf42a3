"""Causal language models (LMs) of transformers: built or loaded, and checked for what our decoder needs."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmlm.core.errors import ArgumentError
from mmlm.model.hugging_face_loading import (
    TEXT_SUPPLIED,
    change_config,
    check_source,
    config_class,
    new_config,
    pretrained_model,
    random_model,
    saved_config,
)

LOGIT_CHANGES = {
    "final_logit_softcapping": (None,),
    "logits_soft_cap": (None,),
    "output_logit_soft_cap": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "lm_head_multiplier": (None, 1),
}
"""Config values by which some architectures scale or cap their logits, and the values that change nothing."""


def make_language_model(
    name_or_path: str | None,
    architecture: str | None,
    settings: Mapping[str, object],
    vocab_size: int,
    load_weights: bool,
) -> PreTrainedModel:
    """A causal LM in float32 with PyTorch's fused attention: pretrained by name or folder, or random by architecture.

    A random LM has ``vocab_size`` ids. ``settings`` override values of the config. With ``load_weights`` false a named
    LM is built from its config, with random weights. Raises UserError.
    """
    check_source(name_or_path, architecture)
    if name_or_path is None:
        return _random(_config_of(cast(str, architecture), settings, vocab_size))
    config = _config_at(name_or_path, settings)
    if not load_weights:
        return _random(config)
    load = AutoModelForCausalLM.from_pretrained
    load = partial(load, config=config, attn_implementation="sdpa", trust_remote_code=False)
    return pretrained_model(name_or_path, load)


def _config_of(architecture: str, settings: Mapping[str, object], vocab_size: int) -> PreTrainedConfig:
    """The config of an LM with random weights. Its special ids are unset: only the run's tokenizer knows them."""
    names, examples = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "gpt2, llama, opt, qwen3, smollm3"
    kind = config_class(architecture, names, "causal LM", examples)
    ids = {"vocab_size": vocab_size, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return new_config(kind, settings, TEXT_SUPPLIED, ids)


def _config_at(name: str, settings: Mapping[str, object]) -> PreTrainedConfig:
    """The config of a pretrained LM, with the user's settings."""
    config = saved_config(name)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ArgumentError(f"name_or_path: '{name}' is a {config.model_type}, which is no causal language model")
    change_config(config, settings, TEXT_SUPPLIED)
    return config


def _random(config: PreTrainedConfig) -> PreTrainedModel:
    """An LM with random weights."""
    make = AutoModelForCausalLM.from_config
    make = partial(make, config, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False)
    return random_model(config, make)


# Parts of a model


def backbone(model: PreTrainedModel) -> nn.Module:
    """The LM without its head. The head is applied to the backbone's ``last_hidden_state``."""
    return model.base_model


def cache_argument(model: PreTrainedModel) -> str | None:
    """Name of the key-value cache among the arguments of this LM's ``forward``; None if it has no cache."""
    names = inspect.signature(backbone(model).forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def makes_attention_explicit(model: PreTrainedModel) -> bool:
    """True if the LM can switch to explicit attention after it is built, and so return its attention weights."""
    return bool(getattr(model, "_supports_attention_backend", False))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The LM's layers, in order. Raises UserError if they are not found."""
    # Architectures name the list differently; its length is the one thing they share.
    count = model.config.num_hidden_layers
    for part in backbone(model).modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise ArgumentError(f"fusion: found no list of {count} layers in {type(model).__name__}; use fusion=prefix")


# Checks


def check_language_model(model: PreTrainedModel, key: str) -> None:
    """UserError unless logits are ``hidden @ head.T``, attention is causal, and embeddings can be passed for token ids.

    The config's part of this is always checked; the rest by running the LM on two tokens, unless it is on the meta
    device.
    """
    kind, head = type(model).__name__, cast(nn.Linear | None, model.get_output_embeddings())
    if backbone(model) is model or head is None or model.config.get_text_config() is not model.config:
        raise ArgumentError(f"{key}: {kind} is no plain language model with a head; choose a text-only causal LM")
    if cache_argument(model) is None:
        raise ArgumentError(f"{key}: {kind} has no key-value cache, which decoding needs; choose a Transformer")
    reason = "logits must be hidden @ head.T, so that losses can be fused with the head; choose another LM"
    if getattr(head, "bias", None) is not None:
        raise ArgumentError(f"{key}: the head of {kind} has a bias; {reason}")
    for name, harmless in LOGIT_CHANGES.items():
        value = getattr(model.config, name, None)
        if value not in harmless:
            raise ArgumentError(f"{key}: {kind} changes its logits by {name}={value}; {reason}")
    if not head.weight.is_meta:
        _check_by_running(model, key, reason)


@torch.no_grad()
def _check_by_running(model: PreTrainedModel, key: str, reason: str) -> None:
    """UserError for an LM whose tokens see later ones, or whose logits from ids differ from ``hidden @ head.T``."""
    kind, training = type(model).__name__, model.training
    head = cast(nn.Linear, model.get_output_embeddings())
    model.eval()
    ids = torch.tensor([[0, 1]], device=head.weight.device)
    embedded = model.get_input_embeddings()(ids)
    # The first token's state must not depend on the second.
    states = backbone(model)(inputs_embeds=embedded, use_cache=False).last_hidden_state
    first = backbone(model)(inputs_embeds=embedded[:, :1], use_cache=False).last_hidden_state
    expected = states @ head.weight.T
    # A soft cap (tanh) hardly changes small logits, and those of random weights are small: scale them up.
    factor = 1000 / expected.abs().max().clamp(min=1e-6)
    with _scaled_input(head, factor):
        logits = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    if not _close(states[:, :1], first):
        raise ArgumentError(f"{key}: {kind} looks at later tokens; choose a causal language model")
    if not _close(logits, factor * expected):
        raise ArgumentError(f"{key}: {kind} changes its logits, or needs token ids besides their embeddings; {reason}")


@contextmanager
def _scaled_input(head: nn.Module, factor: Tensor) -> Iterator[None]:
    """Multiplies the head's input by ``factor`` in this block."""
    handle = head.register_forward_pre_hook(lambda _head, args: (args[0] * factor,))
    try:
        yield
    finally:
        handle.remove()


def _close(one: Tensor, other: Tensor) -> bool:
    """True if two results agree to a thousandth of their largest value."""
    return bool((one - other).abs().max() <= 1e-3 * other.abs().max())
