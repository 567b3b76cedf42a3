"""The configuration of an open_clip CoCa, read strictly: what our model cannot be built as is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmlm.errors import UserError

_SAME: Mapping[str, Mapping[str, object]] = {
    "vision_cfg": {
        "mlp_ratio": 4.0,
        "ls_init_value": None,
        "attentional_pool": True,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "pool_type": "tok",
        "output_tokens": True,
    },
    "text_cfg": {
        "vocab_size": 49408,
        "mlp_ratio": 4.0,
        "ls_init_value": None,
        "embed_cls": True,
        "pad_id": 0,
        "no_causal_mask": False,
        "proj_bias": False,
        "proj_type": "linear",
        "output_tokens": True,
    },
    "multimodal_cfg": {"vocab_size": 49408, "mlp_ratio": 4.0, "ls_init_value": None},
    "": {"custom_text": True, "quick_gelu": False},
}
"""Keys that have to have this value, where they are given."""
_NEEDED: Mapping[str, tuple[str, ...]] = {"vision_cfg": ("attentional_pool",), "text_cfg": ("embed_cls",)}
"""Keys of ``_SAME`` that open_clip takes to be something else where they are missing."""
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "vision_cfg": ("patch_dropout",),
    "text_cfg": (),
    "multimodal_cfg": ("dim_head", "n_queries", "attn_pooler_heads"),
    "": (),
}
"""Keys that open_clip reads nothing of, or nothing but a way of training."""
_SIZES: Mapping[str, Mapping[str, int | None]] = {
    "vision_cfg": {
        "image_size": 224,
        "layers": 12,
        "width": 768,
        "head_width": 64,
        "patch_size": 16,
        "attn_pooler_queries": 256,
        "attn_pooler_heads": 8,
    },
    "text_cfg": {"context_length": 77, "width": 512, "heads": 8, "layers": 12},
    "multimodal_cfg": {"context_length": 77, "width": 512, "heads": 8, "layers": 12},
    "": {"embed_dim": None},
}
"""Sizes, and what open_clip takes them to be where they are missing."""


@dataclass(frozen=True)
class CocaSizes:
    """What may differ between two CoCas of open_clip that our model can be built as."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    pooler_heads: int
    num_queries: int
    """Of the pooler, but for the one that pools for the image embedding."""
    width: int
    """Of the text, of the decoder and of the embeddings."""
    heads: int
    text_layers: int
    multimodal_layers: int
    max_tokens: int
    """Start and end included, the class token not."""


def read_config(file: Path) -> Mapping[str, object]:
    """The model configuration in a JSON file, which may be an ``open_clip_config.json`` of the Hugging Face hub."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return config.get("model_cfg", config)
    except FileNotFoundError:
        raise UserError(f"model: there is no file {file}; give one, or a name such as coca_ViT-B-32") from None
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"model: {file} is no model configuration of open_clip ({error})") from None


def coca_sizes(config: Mapping[str, object]) -> CocaSizes:
    """The sizes of a CoCa from its open_clip configuration.

    Raises UserError for anything that our model has no counterpart of, with the key, the value and what it has to be.
    """
    sections = {name: config.get(name) for name in ("vision_cfg", "text_cfg", "multimodal_cfg")}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UserError(f"model: its configuration has no {name}, so it is no CoCa")
    sections[""] = {key: value for key, value in config.items() if key not in sections}
    vision, text, decoder, top = (_sizes(name, section) for name, section in sections.items())
    width = text["width"]
    for name, value in {"multimodal_cfg.width": decoder["width"], "embed_dim": top["embed_dim"]}.items():
        if value != width:
            raise UserError(f"model: {name}={value} must be the width of the text, {width}, for our decoder to read it")
    if decoder["heads"] != text["heads"]:
        raise UserError(f"model: multimodal_cfg.heads={decoder['heads']} must be text_cfg.heads={text['heads']}")
    return CocaSizes(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_width=vision["width"],
        vision_layers=vision["layers"],
        vision_heads=vision["width"] // vision["head_width"],
        pooler_heads=vision["attn_pooler_heads"],
        num_queries=vision["attn_pooler_queries"] - 1,
        width=width,
        heads=text["heads"],
        text_layers=text["layers"],
        multimodal_layers=decoder["layers"],
        max_tokens=text["context_length"],
    )


def _sizes(name: str, section: Mapping[str, object]) -> dict[str, int]:
    """The sizes of one section, its other keys checked."""
    prefix = f"{name}." if name else ""
    same, sizes = _SAME[name], _SIZES[name]
    for key in _NEEDED.get(name, ()):
        if key not in section:
            raise UserError(f"model: {prefix}{key} is missing and has to be {same[key]}")
    for key, value in section.items():
        if key in same and value != same[key]:
            raise UserError(f"model: {prefix}{key}={value} has no counterpart in our model; it has to be {same[key]}")
        if key in sizes and type(value) is not int:
            raise UserError(f"model: {prefix}{key}={value} has to be a whole number")
        if key not in same and key not in sizes and key not in _IGNORED[name]:
            raise UserError(f"model: {prefix}{key}={value} has no counterpart in our model")
    found = {key: section.get(key, default) for key, default in sizes.items()}
    missing = [key for key, value in found.items() if value is None]
    if missing:
        raise UserError(f"model: {prefix}{missing[0]} is missing")
    return found
