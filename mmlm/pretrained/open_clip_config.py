"""Reads the configuration of an open_clip CoCa or CLIP, and refuses settings without a counterpart in our model."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mmlm.core.errors import UserError

_Section = dict[str, object]
"""One group of a configuration's keys, such as ``vision_cfg``; the top level is the section ""."""
_VISION: _Section = {
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "final_ln_after_pool": False,
}
_TEXT: _Section = {
    "vocab_size": 49408,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "pad_id": 0,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
}
_CLIP: Mapping[str, _Section] = {
    "vision_cfg": _VISION | {"attentional_pool": False},
    "text_cfg": _TEXT | {"embed_cls": False},
    "": {"quick_gelu": False},
}
"""The values that keys of a CLIP must have, if they are given."""
_COCA: Mapping[str, _Section] = {
    "vision_cfg": _VISION | {"attentional_pool": True},
    "text_cfg": _TEXT | {"embed_cls": True},
    "multimodal_cfg": {"vocab_size": 49408, "mlp_ratio": 4.0, "ls_init_value": None},
    "": {"quick_gelu": False},
}
"""The values that keys of a CoCa must have, if they are given."""
_TAKEN_FOR_FALSE = ("attentional_pool", "embed_cls")
"""Keys that open_clip takes to be false if they are not given."""
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "vision_cfg": ("patch_dropout", "output_tokens"),
    "text_cfg": ("output_tokens",),
    "multimodal_cfg": ("dim_head", "n_queries", "attn_pooler_heads"),
    "": ("custom_text",),
}
"""Keys that are ignored: they change no embedding and no logit."""
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
"""The sizes in each section, with open_clip's defaults; None has to be given."""


@dataclass(frozen=True)
class ClipSizes:
    """The sizes in which CLIPs of open_clip that our model can be built as may differ."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    width: int
    """Width of the text layers and of the decoder."""
    heads: int
    text_layers: int
    max_tokens: int
    """Longest text in tokens, start and end included, without a class token."""
    embedding_width: int


@dataclass(frozen=True)
class CocaSizes(ClipSizes):
    """The sizes in which CoCas may differ."""

    pooler_heads: int
    num_queries: int
    """Queries of the pooler, without the one that pools for the image embedding."""
    multimodal_layers: int


def read_config(file: Path) -> Mapping[str, object]:
    """The model configuration in a JSON file, which may be an ``open_clip_config.json`` of the Hugging Face hub."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        section: Mapping[str, object] = config.get("model_cfg", config)
        return section
    except FileNotFoundError:
        raise UserError(f"model: there is no file {file}; give one, or a name such as coca_ViT-B-32") from None
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"model: {file} is no model configuration of open_clip ({error})") from None


def open_clip_sizes(config: Mapping[str, object]) -> ClipSizes:
    """The sizes of a CLIP, or of a CoCa (it has a ``multimodal_cfg``), from its open_clip configuration.

    Raises UserError for anything that our model has no counterpart of, with the key, the value and what it has to be.
    """
    rules = _COCA if "multimodal_cfg" in config else _CLIP
    sections: dict[str, _Section] = {}
    for name in filter(None, rules):
        section = config.get(name)
        if not isinstance(section, Mapping):
            raise UserError(f"model: its configuration has no {name}, so it is no CLIP or CoCa")
        sections[name] = dict(section)
    sections[""] = {key: value for key, value in config.items() if key not in sections}
    sizes = {name: _sizes(name, section, rules[name]) for name, section in sections.items()}
    _check_multiples(sizes)
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    common = ClipSizes(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_width=vision["width"],
        vision_layers=vision["layers"],
        vision_heads=vision["width"] // vision["head_width"],
        width=text["width"],
        heads=text["heads"],
        text_layers=text["layers"],
        max_tokens=text["context_length"],
        embedding_width=sizes[""]["embed_dim"],
    )
    return common if rules is _CLIP else _with_decoder(common, vision, sizes["multimodal_cfg"])


def _with_decoder(common: ClipSizes, vision: Mapping[str, int], decoder: Mapping[str, int]) -> CocaSizes:
    """The sizes of a CoCa. UserError if its decoder differs from its text layers in what is one size in our model."""
    for name, value in {"multimodal_cfg.width": decoder["width"], "embed_dim": common.embedding_width}.items():
        if value != common.width:
            raise UserError(f"model: {name}={value} must be the width of the text, {common.width}, in our model")
    if decoder["heads"] != common.heads:
        raise UserError(f"model: multimodal_cfg.heads={decoder['heads']} must be text_cfg.heads={common.heads}")
    if common.width % vision["attn_pooler_heads"]:
        heads = vision["attn_pooler_heads"]
        raise UserError(f"model: embed_dim={common.width} has to be a multiple of vision_cfg.attn_pooler_heads={heads}")
    if vision["attn_pooler_queries"] < 2:
        raise UserError("model: vision_cfg.attn_pooler_queries=1 has to be at least 2: one is the image's embedding")
    return CocaSizes(
        **dataclasses.asdict(common),
        pooler_heads=vision["attn_pooler_heads"],
        num_queries=vision["attn_pooler_queries"] - 1,
        multimodal_layers=decoder["layers"],
    )


def _sizes(name: str, section: _Section, same: _Section) -> dict[str, int]:
    """The sizes in one section. Its other keys are checked: ``same`` has the values that some of them must have."""
    prefix, sizes = f"{name}." if name else "", _SIZES[name]
    for key, value in (dict.fromkeys(same.keys() & {*_TAKEN_FOR_FALSE}, False) | section).items():
        if key in same and value != same[key]:
            raise UserError(f"model: {prefix}{key}={value} has no counterpart in our model; it has to be {same[key]}")
        if key in sizes and type(value) is not int:
            raise UserError(f"model: {prefix}{key}={value} has to be a whole number")
        if key not in same and key not in sizes and key not in _IGNORED[name]:
            raise UserError(f"model: {prefix}{key}={value} has no counterpart in our model")
    # That a size is a whole number has been checked above.
    found = {key: cast(int, section.get(key, default)) for key, default in sizes.items()}
    missing = [key for key, value in found.items() if value is None]
    if missing:
        raise UserError(f"model: {prefix}{missing[0]} is missing")
    for key, value in found.items():
        if value < 1:
            raise UserError(f"model: {prefix}{key}={value} has to be at least 1")
    return found


def _check_multiples(sizes: Mapping[str, Mapping[str, int]]) -> None:
    """UserError for a size that is no multiple of another one that cuts it into equal pieces."""
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    for key, value, by, part in (
        ("vision_cfg.image_size", vision["image_size"], "vision_cfg.patch_size", vision["patch_size"]),
        ("vision_cfg.width", vision["width"], "vision_cfg.head_width", vision["head_width"]),
        ("text_cfg.width", text["width"], "text_cfg.heads", text["heads"]),
    ):
        if value % part:
            raise UserError(f"model: {key}={value} has to be a multiple of {by}={part}")
