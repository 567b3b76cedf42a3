"""Any encoder of the library transformers (BERT, MiniLM, RoBERTa, CLIP's text tower, ...) as a text tower."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.ranges import check_counts
from mmlm.model.hugging_face_loading import (
    TEXT_SUPPLIED,
    change_config,
    check_source,
    config_class,
    fit_vocabulary,
    new_config,
    pretrained_model,
    random_model,
    saved_config,
)
from mmlm.model.packing import Layout, like_lengths
from mmlm.model.protocols import OPEN_CLIP
from mmlm.model.text_encoders.pooling import Pool, pooled

CLIP_VOCAB_SIZE = 49_408
"""Size of CLIP's vocabulary, which open_clip's tokenizer has too."""


class HuggingFaceText(nn.Module):
    """A text encoder of transformers, pretrained or with random weights, pooled to one vector a text.

    Token states are the encoder's ``last_hidden_state``, after its last norm. From a checkpoint of images and texts
    (CLIP) only the text tower is loaded, without its projection, since ``ImageTextModel`` has one. Pooling heads
    (BERT's ``pooler``) are not built, since ``pool`` takes their place: ``end`` for CLIP (the end token is found by the
    length, not by the largest id as in the original), ``mean`` for sentence encoders, ``cls`` for BERT itself.

    Args:
        vocab_size: ids of the run's tokenizer. A pretrained embedding with fewer rows gets new ones, each the mean of
            the old rows: a frozen tower then reads an average token, the same in every run.
        max_tokens: longest text, start and end included.
        name_or_path: pretrained model on the hub or in a folder (safetensors only, and none of its code is run), or
            ``package:NAME/folder``; or
        architecture: transformers' name (``model_type``) of a model to start at random: ``bert``, ``clip_text_model``.
        settings: values of the model's config that differ from its own, such as sizes, or a dropout of 0.
        pool: ``mean``, ``cls`` or ``end``.
        projection: width of a linear layer behind the pooling, for a model without projections of its own
            (``model.embedding_width=null``); None adds none.
        load_weights: false builds a pretrained model from its config, with random weights.

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
        projection: int | None = None,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check_source(name_or_path, architecture)
        check_counts({"projection": projection})
        self.vocabulary: str | None = None
        self.pool = pool
        if name_or_path is None:
            self.text_model = _build(_config_of(cast(str, architecture), settings or {}, vocab_size))
        else:
            config = _config_at(name_or_path, settings or {})
            is_clip = config.model_type == "clip_text_model" and config.vocab_size == CLIP_VOCAB_SIZE
            self.vocabulary = OPEN_CLIP if is_clip else name_or_path
            self.text_model = _load(name_or_path, config) if load_weights else _build(config)
        fit_vocabulary(self.text_model, vocab_size)
        _check_positions(self.text_model, max_tokens)
        self.width = projection or self.text_model.config.hidden_size
        self.projection: nn.Module = nn.Identity()
        if projection is not None:
            self.projection = nn.Linear(self.text_model.config.hidden_size, projection, bias=False)
        if pool == "cls":
            _check_first_token(self.text_model)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, D], after the last norm and the projection."""
        if lengths.is_meta or _is_sharded(self.text_model):
            return self._embed(tokens, lengths)
        # Texts of like lengths go together, so that hardly any padding is computed. Each text is computed by itself
        # either way.
        groups = like_lengths(lengths)
        parts = [self._embed(tokens[group.rows, : group.longest], lengths[group.rows]) for group in groups]
        return torch.cat(parts)[torch.cat([group.rows for group in groups]).argsort()]

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """See ``mmlm.model.text_places.CountsPlaces``."""
        if _is_sharded(self.text_model):
            return len(lengths) * num_tokens
        return sum(len(group.rows) * group.longest for group in like_lengths(lengths))

    def _embed(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Like ``forward``, of texts that are padded to one length."""
        real = Layout.mask(lengths, tokens.shape[1])
        # Padding gets the encoder's own padding id, since RoBERTa computes positions from where that id stands.
        tokens = tokens.masked_fill(~real, self.text_model.config.pad_token_id or 0)
        states = self.text_model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        return self.projection(pooled(states, lengths, self.pool))


def _is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold shards of the weights: they gather them at each call, so all have to make as many calls."""
    return any(isinstance(part, FSDPModule) for part in model.modules())


# Configs


def _config_of(architecture: str, settings: Mapping[str, object], vocab_size: int) -> PreTrainedConfig:
    """The config of a model with random weights."""
    names, examples = MODEL_MAPPING_NAMES, "bert, roberta, clip_text_model"
    kind = config_class(architecture, names, "encoder", examples)
    _check_kind(kind(), f"architecture: '{architecture}'")
    # ``forward`` fills padding with the padding id. The other special ids have no effect on the token states, but
    # CLIP's own pooling (whose result we ignore) fails without an end id.
    ids = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return new_config(kind, settings, TEXT_SUPPLIED, ids)


def _config_at(name: str, settings: Mapping[str, object]) -> PreTrainedConfig:
    """The config of a pretrained text encoder, or of the text tower of a larger model, with the user's settings."""
    config = saved_config(name).get_text_config()
    _check_kind(config, f"name_or_path: '{name}'")
    change_config(config, settings, TEXT_SUPPLIED)
    return config


def _check_kind(config: PreTrainedConfig, key: str) -> None:
    """UserError unless the config, named by ``key`` in the message, is that of a text encoder."""
    reads_text = hasattr(config, "vocab_size") and hasattr(config, "hidden_size")
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING or not reads_text:
        raise ArgumentError(
            f"{key} is a {config.model_type}, which is no text encoder; choose one such as bert or roberta"
        )


# Models


def _class_of(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], dict[str, Any]]:
    """The class of the bare model, and the constructor argument (if it has one) that leaves out its pooling layer."""
    mapped = MODEL_MAPPING[type(config)]
    kind = cast(type[PreTrainedModel], mapped[0] if isinstance(mapped, tuple) else mapped)
    pools = "add_pooling_layer" in inspect.signature(kind).parameters
    return kind, {"add_pooling_layer": False} if pools else {}


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with random weights, float32."""
    config.dtype = torch.float32
    kind, extra = _class_of(config)
    return random_model(config, partial(kind, config, **extra))


def _load(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with weights that all come from the checkpoint; UserError if some are missing there."""
    kind, extra = _class_of(config)
    return pretrained_model(name, partial(kind.from_pretrained, config=config, **extra))


def _check_positions(model: PreTrainedModel, max_tokens: int) -> None:
    """UserError if the model has a position table that is too short for ``max_tokens``."""
    for name, part in model.named_modules():
        if not isinstance(part, nn.Embedding) or not name.split(".")[-1].startswith(("position_embedding", "wpe")):
            continue
        # RoBERTa's positions begin after its padding id: the rows up to that id are never used.
        positions = part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
        if max_tokens > positions:
            raise UserError(
                f"data.max_tokens: {max_tokens} is more than the {positions} positions of the text encoder "
                f"({model.config.model_type}); use at most that"
            )


@torch.no_grad()
def _check_first_token(model: PreTrainedModel) -> None:
    """UserError if the first token does not attend to the second: ``pool=cls`` would give every text the same vector.

    Tries two texts that differ in their second token only.
    """
    device = cast(nn.Embedding, model.get_input_embeddings()).weight.device
    if device.type == "meta":  # the config check builds models without values
        return
    training = model.training
    texts = torch.tensor([[1, 2], [1, 3]], device=device)
    states = model.eval()(input_ids=texts, attention_mask=torch.ones_like(texts)).last_hidden_state[:, 0]
    model.train(training)
    if torch.allclose(states[0], states[1], rtol=1e-6, atol=1e-6):
        raise ArgumentError(
            f"pool: cls is the same for every text, since the first token of {model.config.model_type} "
            "sees no other; use end or mean"
        )
