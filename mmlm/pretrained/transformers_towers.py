"""Two towers of transformers (SigLIP and SigLIP 2, CLIP, MetaCLIP and MetaCLIP 2) as parts of ours.

Both towers stay transformers' own, and keep their names but for the beginning.
"""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from transformers import AutoModel, PreTrainedConfig

from mmlm.core.errors import ArgumentError, UserError
from mmlm.model.encoders.hugging_face import HuggingFaceVision
from mmlm.model.hugging_face_loading import pretrained_model, saved_config
from mmlm.model.text_encoders.hugging_face import CLIP_VOCAB_SIZE, HuggingFaceText
from mmlm.model.text_encoders.siglip import SiglipText
from mmlm.pretrained.towers import (
    BIAS,
    SCALE,
    Node,
    Towers,
    clip_tokenizer,
    node,
    scalar,
    siglip_tokenizer,
    with_tokenizer,
)

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
_OTHER_NAMES: Mapping[str, str] = {
    "vision_model.": "encoder.tower.",
    "text_model.": "text_encoder.text_model.",
    "visual_projection.": "image_projection.",
    "text_projection.": "text_projection.",
}
"""How names begin in transformers, and here."""


def transformers_towers(name: str, tokenizer: str | None) -> Towers:
    """The towers of a model on the hub or in a folder. ``tokenizer`` is one from elsewhere.

    Raises UserError for a model of another kind, and for one that cannot be loaded.
    """
    try:
        config = saved_config(name)
        make = _MAKERS.get(config.model_type)
        if make is None:
            naflex = " (SigLIP 2 in its own aspect ratio, NaFlex, has no images of one size)"
            kind = config.model_type + (naflex if config.model_type == "siglip2" else "")
            raise UserError(
                f"from_transformers: '{name}' is a {kind}; models of these types are read: {', '.join(_MAKERS)}"
            )
        weights = pretrained_model(name, partial(AutoModel.from_pretrained, config=config)).state_dict()
    except ArgumentError as error:
        raise UserError(f"from_transformers: {str(error).removeprefix('name_or_path: ')}") from None
    return make(config, weights, name if tokenizer is None else tokenizer)


def _siglip(config: PreTrainedConfig, weights: Mapping[str, Tensor], tokenizer: str) -> Towers:
    vision, text = config.vision_config, config.text_config
    if not vision.vision_use_head:
        raise UserError("from_transformers: this SigLIP has no attention pool (vision_use_head), so no image embedding")
    tokens, padding = siglip_tokenizer(tokenizer)
    settings = _settings(text, "vocab_size", "max_position_embeddings", "projection_size")
    return Towers(
        encoder=_vision("siglip_vision_model", vision, "own"),
        text_encoder=node(SiglipText, settings=settings, padding_id=padding),
        tokenizer=tokens,
        image_size=vision.image_size,
        max_tokens=text.max_position_embeddings + 1,  # the tower does not read our start
        embedding_width=None,
        weights=_renamed(weights),
        scale=scalar(weights, SCALE),
        bias=scalar(weights, BIAS),
        sigmoid=True,
    )


def _clip(config: PreTrainedConfig, weights: Mapping[str, Tensor], tokenizer: str) -> Towers:
    """CLIP; and MetaCLIP 2, whose towers are CLIP's with a vocabulary of many languages."""
    vision, text = config.vision_config, config.text_config
    settings, renamed, tokens = _settings(text, "max_position_embeddings"), _renamed(weights), clip_tokenizer()
    if text.vocab_size != CLIP_VOCAB_SIZE:
        tokens, renamed = with_tokenizer(renamed, tokenizer)
    return Towers(
        encoder=_vision("clip_vision_model", vision, "cls"),
        text_encoder=node(HuggingFaceText, architecture="clip_text_model", settings=settings, pool="end"),
        tokenizer=tokens,
        image_size=vision.image_size,
        max_tokens=text.max_position_embeddings,
        embedding_width=config.projection_dim,
        weights=renamed,
        scale=scalar(weights, SCALE),
        bias=None,
        sigmoid=False,
    )


_MAKERS: Mapping[str, Callable[[PreTrainedConfig, Mapping[str, Tensor], str], Towers]] = {
    "siglip": _siglip,
    "clip": _clip,
    "metaclip_2": _clip,
}


def _vision(architecture: str, config: PreTrainedConfig, pool: str) -> Node:
    return node(HuggingFaceVision, architecture=architecture, settings=_settings(config, "patch_size"), pool=pool)


def _settings(config: PreTrainedConfig, *more: str) -> dict[str, object]:
    return {key: getattr(config, key) for key in (*_SIZES, *more)}


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names, without temperature and bias."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        beginning = next((one for one in _OTHER_NAMES if name.startswith(one)), None)
        if beginning is not None:
            found[_OTHER_NAMES[beginning] + name.removeprefix(beginning)] = tensor
    return found
