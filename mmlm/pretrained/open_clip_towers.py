"""Two towers of open_clip (open_clip 3.3) as parts of ours: SigLIP and SigLIP 2, PE-Core, and MetaCLIP.

The image towers of SigLIP and PE-Core are timm's, in open_clip and here, and keep their names. The text towers become
those of transformers, which have the same layers under other names. Nothing is computed: tensors are renamed and cut.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import cast

from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.data.tokenizers.siglip import Siglip
from mmlm.model.encoders.timm_any import TimmEncoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.text_encoders.hugging_face import HuggingFaceText
from mmlm.model.text_encoders.siglip import SiglipText
from mmlm.pretrained.open_clip import Match, affine, image_side, renamed
from mmlm.pretrained.open_clip_config import open_clip_sizes
from mmlm.pretrained.towers import BIAS, SCALE, Towers, clip_tokenizer, node, scalar, siglip_tokenizer, with_tokenizer

_CANONICAL = {"clean": "canonicalize"}
"""How a configuration asks for ``Siglip``'s cleaning of texts."""
_VISION_VALUES: Mapping[str, tuple[object, ...]] = {
    "timm_model_pretrained": (False,),
    "timm_pool": ("map",),
    "timm_proj": ("none", None, ""),
    "timm_drop": (0, 0.0),
    "timm_drop_path": (None,),
    "patch_dropout": (0, 0.0),
}
"""What keys of an image tower of timm's must be. That in ``timm_proj``: no layer of open_clip's behind timm's head."""
_TEXT_VALUES: Mapping[str, tuple[object, ...]] = {
    "proj_type": ("linear",),
    "embed_cls": (False,),
    "ls_init_value": (None,),
    "output_tokens": (False, True),
    "pad_id": (0, 1),
}
"""What keys of every text tower must be; the last two change no embedding of these."""
_SIGLIP_TEXT: Mapping[str, tuple[object, ...]] = {
    "no_causal_mask": (True,),
    "pool_type": ("last",),
    "proj_bias": (True,),
    "hf_tokenizer_name": (),
    "tokenizer_kwargs": (_CANONICAL,),
}
"""What keys of SigLIP's text tower must be; () stands for anything."""
_CLIP_TEXT: Mapping[str, tuple[object, ...]] = {
    "no_causal_mask": (False,),
    "pool_type": ("argmax",),
    "proj_bias": (False,),
    "vocab_size": (49_408,),
}
"""What keys of the text tower of PE-Core and of MetaCLIP must be."""
_SIZES = {"context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
"""Sizes of a text tower, with open_clip's defaults."""
_ACTIVATION = ("act_kwargs", "norm_kwargs")


def is_two_towers(config: Mapping[str, object]) -> bool:
    """True for a configuration of open_clip that ``open_clip_towers`` reads: timm's image tower, or quick GELU."""
    vision = config.get("vision_cfg")
    timm = isinstance(vision, Mapping) and vision.get("timm_model_name") is not None
    return "multimodal_cfg" not in config and (timm or config.get("quick_gelu") is True)


def open_clip_towers(config: Mapping[str, object], weights: Mapping[str, Tensor], tokenizer: str | None) -> Towers:
    """The towers of an open_clip configuration with their weights.

    ``tokenizer`` takes the place of the one that the configuration names. Raises UserError for a key of the
    configuration that has no counterpart here, and for names of weights that are missing or unexpected.
    """
    # Models with ``custom_text`` have their text tower in a module of its own.
    prefix = "text." if any(name.startswith("text.") for name in weights) else ""
    if config.get("quick_gelu") is True:
        return _metaclip(config, weights, prefix, tokenizer)
    text = _section(config, "text_cfg")
    is_siglip = bool(text.get("no_causal_mask"))
    _check("text_cfg.", text, {**_TEXT_VALUES, **(_SIGLIP_TEXT if is_siglip else _CLIP_TEXT)}, {*_SIZES, *_ACTIVATION})
    vision = _section(config, "vision_cfg")
    _check("vision_cfg.", vision, _VISION_VALUES, {"image_size", "timm_model_name"})
    if vision.get("timm_pool") != "map":
        raise UserError("model: vision_cfg.timm_pool has to be 'map', timm's attention pool")
    top = {key: value for key, value in config.items() if key not in ("vision_cfg", "text_cfg")}
    _check(
        "", top, {"custom_text": (True,), "quick_gelu": (False,)}, {"embed_dim", "init_logit_bias", "init_logit_scale"}
    )
    return (_siglip if is_siglip else _pe_core)(config, weights, prefix, tokenizer)


def _siglip(config: Mapping[str, object], weights: Mapping[str, Tensor], prefix: str, tokenizer: str | None) -> Towers:
    vision, text = _section(config, "vision_cfg"), _section(config, "text_cfg")
    if vision.get("timm_proj") != "none":
        raise UserError("model: vision_cfg.timm_proj has to be 'none' beside SigLIP's text tower")
    settings = _text_settings(text, quick=False) | {
        "vocab_size": text.get("vocab_size", _SIZES["vocab_size"]),
        "projection_size": config["embed_dim"],
    }
    tokens, padding = siglip_tokenizer(tokenizer or cast(str | None, text.get("hf_tokenizer_name")))
    matches = [
        *_same(weights, "visual.trunk.", "encoder.backbone."),
        *_text(cast(int, settings["num_hidden_layers"]), prefix),
        *affine(f"{prefix}text_projection", "text_encoder.text_model.head"),
    ]
    return Towers(
        encoder=node(TimmEncoder, name=vision["timm_model_name"], pool="own"),
        text_encoder=node(SiglipText, settings=settings, padding_id=padding),
        tokenizer=tokens,
        image_size=cast(int, vision["image_size"]),
        max_tokens=cast(int, settings["max_position_embeddings"]) + 1,  # the tower does not read our start
        embedding_width=None,
        weights=renamed(matches, weights, (SCALE, BIAS) if BIAS in weights else _scale_in(weights)),
        scale=scalar(weights, SCALE),
        bias=scalar(weights, BIAS),
        sigmoid=True,
    )


def _pe_core(config: Mapping[str, object], weights: Mapping[str, Tensor], prefix: str, tokenizer: str | None) -> Towers:
    vision, text = _section(config, "vision_cfg"), _section(config, "text_cfg")
    _no_tokenizer(tokenizer)
    if vision.get("timm_proj") not in (None, ""):
        raise UserError("model: vision_cfg.timm_proj has to be null, timm's own head, beside this text tower")
    settings, width = _text_settings(text, quick=False), cast(int, config["embed_dim"])
    projection = Match((f"{prefix}text_projection",), ("text_encoder.projection.weight",), transposed=True)
    matches = [
        *_same(weights, "visual.trunk.", "encoder.backbone."),
        *_text(cast(int, settings["num_hidden_layers"]), prefix),
        projection,
    ]
    return Towers(
        encoder=node(TimmEncoder, name=vision["timm_model_name"], pool="own", head=width),
        text_encoder=_clip_text(settings) | {"projection": width},
        tokenizer=clip_tokenizer(),
        image_size=cast(int, vision["image_size"]),
        max_tokens=cast(int, settings["max_position_embeddings"]),
        embedding_width=None,
        weights=renamed(matches, weights, _scale_in(weights)),
        scale=scalar(weights, SCALE),
        bias=None,
        sigmoid=False,
    )


def _metaclip(
    config: Mapping[str, object], weights: Mapping[str, Tensor], prefix: str, tokenizer: str | None
) -> Towers:
    """CLIP with the quick approximation of GELU, as OpenAI's, MetaCLIP's and DFN's; and MetaCLIP 2 (worldwide).

    The latter has a tokenizer of many languages, and pools at its end token, as we always do.
    """
    text = _section(config, "text_cfg")
    own = cast(str | None, text.get("hf_tokenizer_name"))
    worldwide = ("hf_tokenizer_name", "tokenizer_kwargs", "pool_type", "eos_id", "vocab_size")
    if own is None:
        _no_tokenizer(tokenizer)
    elif text.get("pool_type") != "eos" or text.get("tokenizer_kwargs", _CANONICAL) != _CANONICAL:
        raise UserError(
            "model: text_cfg.pool_type has to be 'eos' beside a tokenizer of its own, and tokenizer_kwargs "
            f"{_CANONICAL} if it is given"
        )
    plain = text if own is None else {key: value for key, value in text.items() if key not in worldwide}
    rest = {key: value for key, value in config.items() if key != "quick_gelu"}
    sizes = open_clip_sizes({**rest, "text_cfg": plain})
    settings = _text_settings(text, quick=True)
    matches = [
        *image_side(sizes.vision_layers),
        *affine("visual.ln_post", "encoder.vit.norm"),
        *_text(sizes.text_layers, prefix),
        Match((f"{prefix}text_projection",), ("text_projection.weight",), transposed=True),
    ]
    found, tokens = renamed(matches, weights, _scale_in(weights)), clip_tokenizer()
    if own is not None:
        canonical = text.get("tokenizer_kwargs") == _CANONICAL
        tokens, found = with_tokenizer(found, tokenizer or own, Siglip if canonical else HuggingFace)
    return Towers(
        encoder=node(
            TimmVit,
            name="vit_base_patch32_clip_quickgelu_224",
            patch_size=sizes.patch_size,
            width=sizes.vision_width,
            depth=sizes.vision_layers,
            num_heads=sizes.vision_heads,
            pool="cls",
        ),
        text_encoder=_clip_text(settings),
        tokenizer=tokens,
        image_size=sizes.image_size,
        max_tokens=sizes.max_tokens,
        embedding_width=sizes.embedding_width,
        weights=found,
        scale=scalar(weights, SCALE),
        bias=None,
        sigmoid=False,
    )


def _clip_text(settings: Mapping[str, object]) -> dict[str, object]:
    return node(HuggingFaceText, architecture="clip_text_model", settings=dict(settings), pool="end")


def _no_tokenizer(tokenizer: str | None) -> None:
    if tokenizer is not None:
        raise UserError("tokenizer: these weights go with CLIP's own, which open_clip brings; leave it out")


def _scale_in(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The temperature's name, if it is among the weights: whether it has to be is for the caller to say."""
    return (SCALE,) if SCALE in weights else ()


def _section(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"model: its configuration has no {name}")
    return section


def _check(
    prefix: str, section: Mapping[str, object], values: Mapping[str, tuple[object, ...]], free: Collection[str]
) -> None:
    """UserError for a key that is neither ``free`` nor has one of its ``values`` (() is any)."""
    for key, value in section.items():
        if key in free and key not in values:
            continue
        if key not in values:
            raise UserError(f"model: {prefix}{key}={value} has no counterpart in our model")
        if values[key] and value not in values[key]:
            wanted = " or ".join(str(one) for one in values[key])
            raise UserError(f"model: {prefix}{key}={value} has no counterpart in our model; it has to be {wanted}")


def _text_settings(text: Mapping[str, object], quick: bool) -> dict[str, object]:
    """The settings of transformers' text tower for open_clip's sizes."""
    size = {key: cast(float, text.get(key, default)) for key, default in _SIZES.items()}
    norm, act = (cast(Mapping[str, object], text.get(key) or {}) for key in ("norm_kwargs", "act_kwargs"))
    if set(norm) - {"eps"} or set(act) - {"approximate"} or act.get("approximate", "none") not in ("none", "tanh"):
        raise UserError(f"model: text_cfg.norm_kwargs={dict(norm)} and act_kwargs={dict(act)} have no counterpart")
    return {
        "hidden_size": int(size["width"]),
        "num_hidden_layers": int(size["layers"]),
        "num_attention_heads": int(size["heads"]),
        "intermediate_size": int(size["width"] * size["mlp_ratio"]),
        "max_position_embeddings": int(size["context_length"]),
        "hidden_act": "quick_gelu" if quick else "gelu_pytorch_tanh" if act.get("approximate") == "tanh" else "gelu",
        "layer_norm_eps": norm.get("eps", 1e-5),
    }


def _same(weights: Mapping[str, Tensor], theirs: str, ours: str) -> Iterator[Match]:
    """The matches of all tensors whose names differ in their beginning only."""
    for name in weights:
        if name.startswith(theirs):
            yield Match((name,), (ours + name.removeprefix(theirs),))


def _text(num_layers: int, prefix: str) -> Iterator[Match]:
    """The matches of a text tower, but for its projection, with transformers' SigLIP or CLIP."""
    ours = "text_encoder.text_model"
    yield Match((f"{prefix}token_embedding.weight",), (f"{ours}.embeddings.token_embedding.weight",))
    yield Match((f"{prefix}positional_embedding",), (f"{ours}.embeddings.position_embedding.weight",))
    for i in range(num_layers):
        theirs, layer = f"{prefix}transformer.resblocks.{i}", f"{ours}.encoder.layers.{i}"
        yield from affine(f"{theirs}.ln_1", f"{layer}.layer_norm1")
        for kind in ("weight", "bias"):
            three = tuple(f"{layer}.self_attn.{name}_proj.{kind}" for name in "qkv")
            yield Match((f"{theirs}.attn.in_proj_{kind}",), three)
        yield from affine(f"{theirs}.attn.out_proj", f"{layer}.self_attn.out_proj")
        yield from affine(f"{theirs}.ln_2", f"{layer}.layer_norm2")
        yield from affine(f"{theirs}.mlp.c_fc", f"{layer}.mlp.fc1")
        yield from affine(f"{theirs}.mlp.c_proj", f"{layer}.mlp.fc2")
    yield from affine(f"{prefix}ln_final", f"{ours}.final_layer_norm")
