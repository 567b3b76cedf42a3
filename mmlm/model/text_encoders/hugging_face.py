"""Any encoder of transformers (BERT, MiniLM, RoBERTa, CLIP's text tower, ...) as a text tower."""

import inspect
from collections.abc import Mapping

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mmlm.errors import UserError
from mmlm.model.blocks import Layout
from mmlm.model.protocols import OPEN_CLIP
from mmlm.model.text_encoders.pooling import Pool, pooled
from mmlm.wording import closest, did_you_mean

CLIP_VOCAB_SIZE = 49_408
"""Tokens of CLIP's vocabulary, the one that open_clip's tokenizer has."""
SUPPLIED = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "dtype")
"""Config values that are not the user's to set: the run's tokenizer decides the ids, we the dtype."""


class HuggingFaceText(nn.Module):
    """An encoder of transformers, pretrained or of random weights, whose token states are pooled to one vector.

    The states are the model's ``last_hidden_state``, after its last norm. Of a model of images and texts (CLIP) only
    the text tower is taken, without its projection: the model has one of its own. Heads that pool (BERT's ``pooler``)
    are left out, since we pool: CLIP at the end token (``pool=end``, found by the length, not by the largest id as in
    the original), sentence encoders by the ``mean`` over all real tokens, BERT itself by its first token, ``cls``.

    Args:
        vocab_size: ids of the run's tokenizer. An embedding of a pretrained model with fewer gets new rows, each the
            mean of the old ones, so that a frozen tower sees an average token and every run the same one.
        max_tokens: longest text, start and end included.
        name_or_path: pretrained model on the hub or in a folder (safetensors only, and none of its code is run); or
        architecture: transformers' name (``model_type``) of a model to start at random: ``bert``, ``clip_text_model``.
        settings: values of the model's config that differ from its own, such as sizes, or a dropout of 0.
        pool: ``mean``, ``cls`` or ``end``.
        load_weights: false builds a pretrained model by its config alone.

    Raises:
        UserError: a model that cannot be loaded, is no encoder, has fewer positions than ``max_tokens``, or whose first
            token sees no other with ``pool=cls``; or a setting it does not have.
    """

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        name_or_path: str | None = None,
        architecture: str | None = None,
        settings: Mapping[str, object] | None = None,
        pool: Pool = "mean",
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        if (name_or_path is None) == (architecture is None):
            raise UserError(
                f"text_encoder: name_or_path={name_or_path} and architecture={architecture}: set exactly one; the "
                "first loads a pretrained model, the second makes a random one"
            )
        self.vocabulary, self.pool = None, pool
        if name_or_path is None:
            self.text_model = _build(_config_of(architecture, settings or {}, vocab_size))
        else:
            config = _config_at(name_or_path, settings or {})
            is_clip = config.model_type == "clip_text_model" and config.vocab_size == CLIP_VOCAB_SIZE
            self.vocabulary = OPEN_CLIP if is_clip else name_or_path
            self.text_model = _load(name_or_path, config) if load_weights else _build(config)
        _fit_vocabulary(self.text_model, vocab_size)
        _check_positions(self.text_model, max_tokens)
        self.width = self.text_model.config.hidden_size
        if pool == "cls":
            _check_first_token(self.text_model)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, D], after the last norm."""
        real = Layout.mask(lengths, tokens.shape[1])
        # The model's own padding id: RoBERTa counts positions by it.
        tokens = tokens.masked_fill(~real, self.text_model.config.pad_token_id or 0)
        states = self.text_model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        return pooled(states, lengths, self.pool)


# Configs


def _config_of(architecture: str, settings: Mapping[str, object], vocab_size: int) -> PreTrainedConfig:
    """The config of a random model. Padding is filled with its padding id; its other special ids decide nothing."""
    if architecture not in MODEL_MAPPING_NAMES or architecture not in CONFIG_MAPPING:
        meant = closest(architecture, MODEL_MAPPING_NAMES)
        hint = f"did you mean '{meant}'?" if meant else "there are for example bert, roberta, clip_text_model"
        raise UserError(f"text_encoder.architecture: transformers has no encoder '{architecture}'; {hint}")
    kind = CONFIG_MAPPING[architecture]
    _check_kind(kind(), f"text_encoder.architecture: '{architecture}'")
    _check_settings(settings, kind())
    # CLIP's own pooling, which we do not use, wants an id to look for.
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    try:
        return kind(**settings, vocab_size=vocab_size, **ids)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = _first_line(error)
        raise UserError(f"text_encoder.settings: {architecture} does not take them: {reason}") from error


def _config_at(name: str, settings: Mapping[str, object]) -> PreTrainedConfig:
    """The config of a pretrained text model, or of the text tower of a larger one, with the user's changes."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"text_encoder.name_or_path: '{name}' cannot be loaded: {_first_line(error)}") from error
    _check_kind(config, f"text_encoder.name_or_path: '{name}'")
    _check_settings(settings, config)
    for key, value in settings.items():
        try:
            setattr(config, key, value)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise UserError(f"text_encoder.settings.{key}: {value} does not fit: {_first_line(error)}") from error
    return config


def _check_kind(config: PreTrainedConfig, key: str) -> None:
    reads_text = hasattr(config, "vocab_size") and hasattr(config, "hidden_size")
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING or not reads_text:
        raise UserError(f"{key} is a {config.model_type}, which is no text encoder; choose one such as bert or roberta")


def _check_settings(settings: Mapping[str, object], config: PreTrainedConfig) -> None:
    """UserError for a key that the config does not have: transformers would take it and do nothing."""
    public = sorted(key for key in {*vars(config), *config.attribute_map} if not key.startswith("_"))
    for key in settings:
        if key in SUPPLIED:
            raise UserError(f"text_encoder.settings.{key}: is decided by the run; remove it")
        if key not in public:
            hint = did_you_mean(key, public)
            raise UserError(f"text_encoder.settings.{key}: {config.model_type} has no such setting{hint}")


# Models


def _class_of(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], dict[str, bool]]:
    """The class of the bare model, and what keeps it from building a layer that only serves its own pooling."""
    kind = MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    pools = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return kind, {"add_pooling_layer": False} if pools else {}


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with random weights, float32."""
    config.dtype = torch.float32
    kind, extra = _class_of(config)
    try:
        return kind(config, **extra)
    except (ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"text_encoder: {config.model_type} cannot be built: {_first_line(error)}") from error


def _load(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with its weights, every one of them from the checkpoint; float32 whatever they are stored in."""
    kind, extra = _class_of(config)
    try:
        model, report = kind.from_pretrained(
            name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **extra
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"text_encoder.name_or_path: '{name}' cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"text_encoder.name_or_path: '{name}' has no weights for {missing[0]} and {len(missing) - 1} more of its "
            "text model; they would start at random"
        )
    return model.train()


def _fit_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Appends rows, the mean of the old ones, until there are ``vocab_size``; a larger vocabulary is left alone.

    The row of the model's own padding id is trained like any other: that id may be a real token of the run.
    """
    embedding = model.get_input_embeddings()
    embedding.padding_idx = None
    missing = vocab_size - embedding.num_embeddings
    if missing <= 0:
        return
    old = embedding.weight.detach()
    embedding.weight = nn.Parameter(torch.cat([old, old.mean(dim=0, keepdim=True).expand(missing, -1)]))
    embedding.num_embeddings = model.config.vocab_size = vocab_size


def _check_positions(model: PreTrainedModel, max_tokens: int) -> None:
    """UserError if the model has a table of positions that is too short. RoBERTa's begins after its padding id."""
    for name, part in model.named_modules():
        if not isinstance(part, nn.Embedding) or not name.split(".")[-1].startswith(("position_embedding", "wpe")):
            continue
        positions = part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
        if max_tokens > positions:
            raise UserError(
                f"data.max_tokens: {max_tokens} is more than the {positions} positions of the text encoder "
                f"({model.config.model_type}); use at most that"
            )


@torch.no_grad()
def _check_first_token(model: PreTrainedModel) -> None:
    """UserError if the first token's state does not depend on the next one: it would be the same for every text."""
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":
        return
    training = model.training
    texts = torch.tensor([[1, 2], [1, 3]], device=device)
    states = model.eval()(input_ids=texts, attention_mask=torch.ones_like(texts)).last_hidden_state[:, 0]
    model.train(training)
    if torch.allclose(states[0], states[1], rtol=1e-6, atol=1e-6):
        raise UserError(
            f"text_encoder.pool: cls is the same for every text, since the first token of {model.config.model_type} "
            "sees no other; use end or mean"
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
